"""Choosing the best checkpoint, on images set apart from the training data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict, final

import numpy as np
import torch

from clipguard.attacks.engine.outcome import Example
from clipguard.core.progress import Progress
from clipguard.data.dataset import stratified_subset
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import collate
from clipguard.finetuning.data.images import TrainingImages
from clipguard.finetuning.data.random_keys import random_key
from clipguard.finetuning.data.training_data import TrainingData
from clipguard.finetuning.training.accuracy import Accuracies, score
from clipguard.finetuning.training.objective import Objective
from clipguard.finetuning.tuned.image_tower import TunedClassifier
from clipguard.finetuning.tuned.tuned_model import TunedModel

BY_ACCURACY = "mean of clean and PGD-10 accuracy on validation images"
BY_LOSS = "loss on validation images"
EPOCH = -1  # of the random numbers of validation images: no epoch of training has it
END_OF_TRAINING = 1.0  # progress at which the loss is taken


@final
class ValidationLoss(TypedDict):
    """The mean loss over `n` validation images."""

    loss: float
    n: int


class Validation:
    """Scores a model in training; the higher value is the better one.

    Methods that are trained on labels are compared by accuracy, the others, which must not see any, by their loss.
    """

    def __init__(
        self, config: FinetuneConfig, data: TrainingData, images: TrainingImages, objective: Objective
    ) -> None:
        self.config, self.data, self.images, self.objective = config, data, images, objective
        labels = np.zeros(len(data.images), dtype=np.int64) if data.labels is None else data.labels
        classes = max(1, len(data.class_names))
        chosen = stratified_subset(labels[data.validation], classes, config.eval_samples, config.seed)
        self.indices = data.validation[chosen]
        self.by_accuracy = "labels" in objective.method.needs(END_OF_TRAINING)

    @property
    def criterion(self) -> str:
        """What the value is, in words."""
        return BY_ACCURACY if self.by_accuracy else BY_LOSS

    def __call__(self, model: TunedModel, progress: Progress, rows: int) -> tuple[float, Accuracies | ValidationLoss]:
        """The value, and what it comes from. Leaves the model in the mode it had.

        Args:
            model: what is scored.
            progress: told of each image.
            rows: images of a pass of the loss.
        """
        training = model.training
        model.eval()
        try:
            return self._by_accuracy(model, progress) if self.by_accuracy else self._by_loss(model, progress, rows)
        finally:
            model.train(training)

    def _by_accuracy(self, model: TunedModel, progress: Progress) -> tuple[float, Accuracies]:
        with torch.no_grad():
            text = model()
        classifier = TunedClassifier(model.image, text, self.objective.logit_scale).eval()
        examples = self._examples(text.device)
        scored = score(classifier, examples, len(self.indices), self.config, progress, "validation")
        return scored.mean, scored.accuracies

    def _examples(self, device: torch.device) -> Iterator[Example]:
        assert self.data.labels is not None
        for index in self.indices.tolist():
            yield Example(index, self.images.pixels(index).to(device), int(self.data.labels[index]))

    def _by_loss(self, model: TunedModel, progress: Progress, rows: int) -> tuple[float, ValidationLoss]:
        device = model.image.mean.device
        progress.start("validation", len(self.indices))
        total = 0.0
        for start in range(0, len(self.indices), rows):
            indices = self.indices[start : start + rows].tolist()
            items = [(self.images.pixels(i), -1, random_key(self.config.seed, EPOCH, i)) for i in indices]
            batch = collate(items)
            batch = batch._replace(pixels=batch.pixels.to(device))
            with torch.no_grad():
                terms = self.objective(model, batch, END_OF_TRAINING, forward=model)
            total += len(indices) * float(sum(terms.losses.values()))
            for _ in indices:
                progress.advance()
        loss = total / len(self.indices)
        return -loss, {"loss": loss, "n": len(self.indices)}


def describe_validation(result: Accuracies | ValidationLoss) -> str:
    """What validation found, on one line."""
    if "loss" in result:
        return f"loss {result['loss']:.4g}"
    clean, robust = result["clean"]["accuracy"], result["robust"]["accuracy"]
    return f"clean {100 * clean:.1f} %, PGD-10 {100 * robust:.1f} %"
