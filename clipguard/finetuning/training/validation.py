"""Choosing the best checkpoint, on images set apart from the training data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from clipguard.attacks.engine.engine import Example
from clipguard.core.progress import Progress
from clipguard.data.dataset import stratified_subset
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.training.data import Pixels, TrainingData, collate, random_key
from clipguard.finetuning.training.evaluation import evaluate
from clipguard.finetuning.training.image_tower import TunedClassifier
from clipguard.finetuning.training.objective import Losses, Student

BY_ACCURACY = "mean of clean and PGD-10 accuracy on validation images"
BY_LOSS = "loss on validation images"
EPOCH = -1  # of the random numbers of validation images
LAST = 1.0  # progress: the loss at the end of training


class Validation:
    """Scores a student; the higher value is the better one.

    Methods that are trained on labels are compared by accuracy, the others, which must not see any, by their loss.
    """

    def __init__(self, config: FinetuneConfig, data: TrainingData, pixels: Pixels, losses: Losses) -> None:
        self.config, self.data, self.pixels, self.losses = config, data, pixels, losses
        labels = np.zeros(len(data.images), dtype=np.int64) if data.labels is None else data.labels
        classes = max(1, len(data.class_names))
        chosen = stratified_subset(labels[data.validation], classes, config.eval_samples, config.seed)
        self.indices = data.validation[chosen]
        self.by_accuracy = "labels" in losses.method.needs(LAST)

    @property
    def criterion(self) -> str:
        """What the value is, in words."""
        return BY_ACCURACY if self.by_accuracy else BY_LOSS

    def __call__(self, student: Student, progress: Progress) -> tuple[float, dict[str, Any]]:
        """The value, and what it comes from in plain JSON types. Leaves the student in the mode it had."""
        training = student.training
        student.eval()
        try:
            return self._by_accuracy(student, progress) if self.by_accuracy else self._by_loss(student, progress)
        finally:
            student.train(training)

    def _by_accuracy(self, student: Student, progress: Progress) -> tuple[float, dict[str, Any]]:
        with torch.no_grad():
            text = student()
        classifier = TunedClassifier(student.image, text, self.losses.logit_scale).eval()
        score = evaluate(
            classifier, self._examples(text.device), len(self.indices), self.config, progress, "validation"
        )
        return score.mean, score.to_dict()

    def _examples(self, device: torch.device) -> Iterator[Example]:
        assert self.data.labels is not None
        for index in self.indices.tolist():
            yield Example(index, self.pixels.pixels(index).to(device), int(self.data.labels[index]))

    def _by_loss(self, student: Student, progress: Progress) -> tuple[float, dict[str, Any]]:
        losses = replace(self.losses, student=student, forward=student)
        device = student.image.mean.device
        progress.start("validation", len(self.indices))
        total = 0.0
        for start in range(0, len(self.indices), self.config.batch_size):
            indices = self.indices[start : start + self.config.batch_size].tolist()
            rows = [(self.pixels.pixels(i), -1, random_key(self.config.seed, EPOCH, i)) for i in indices]
            images = collate(rows)
            with torch.no_grad():
                terms, _, _ = losses(images._replace(pixels=images.pixels.to(device)), LAST)
            total += len(indices) * float(sum(terms.values()))
            for _ in indices:
                progress.advance()
        loss = total / len(self.indices)
        return -loss, {"loss": loss, "n": len(self.indices)}
