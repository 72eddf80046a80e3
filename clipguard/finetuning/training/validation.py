"""Choosing the best checkpoint, on images set apart from the training data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict, final

import numpy as np
import torch

from clipguard.attacks.engine.outcome import Example
from clipguard.core.progress import Progress
from clipguard.data.dataset import stratified_subset
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import collate
from clipguard.finetuning.data.images import TrainingImages
from clipguard.finetuning.data.random_keys import random_key
from clipguard.finetuning.data.training_data import Indices, TrainingData
from clipguard.finetuning.processes.team import ALONE, Team
from clipguard.finetuning.training.accuracy import Accuracies, Accuracy, accuracy_of, score
from clipguard.finetuning.training.objective import Objective
from clipguard.finetuning.tuned.image_tower import TunedClassifier
from clipguard.finetuning.tuned.tuned_model import TunedModel

if TYPE_CHECKING:
    from typing_extensions import NotRequired

BY_ACCURACY = "mean of clean and PGD-10 accuracy on validation images"
BY_LOSS = "loss on validation images"
EPOCH = -1  # of the random numbers of validation images: no epoch of training has it
END_OF_TRAINING = 1.0  # progress at which the loss is taken


@final
class ValidationLoss(TypedDict):
    """The mean loss over `n` validation images."""

    loss: float
    n: int
    clean: NotRequired[Accuracy]  # zero-shot, of methods that train on captions, where images have labels


class Validation:
    """Scores a model in training; the higher value is the better one. Of several processes each takes a part.

    Methods that are trained on labels are compared by accuracy, the others, which must not see any, by their loss. Of
    those that train on captions, zero-shot accuracy on clean images is told, too, where these have labels.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        data: TrainingData,
        images: TrainingImages,
        objective: Objective,
        team: Team = ALONE,
    ) -> None:
        self.config, self.data, self.images, self.objective, self.team = config, data, images, objective, team
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
        own = self.indices[self.team.part(len(self.indices))]
        correct = [0, 0]
        with self.team.agree():
            if len(own):
                found = score(
                    classifier, self._examples(own, text.device), len(own), self.config, progress, "validation"
                )
                correct = [found.accuracies["clean"]["correct"], found.accuracies["robust"]["correct"]]
        clean, robust = (accuracy_of(n, len(self.indices)) for n in self.team.sum(torch.tensor(correct)).tolist())
        return (clean["accuracy"] + robust["accuracy"]) / 2, {"clean": clean, "robust": robust}

    def _examples(self, indices: Indices, device: torch.device) -> Iterator[Example]:
        assert self.data.labels is not None
        for index in indices.tolist():
            yield Example(index, self.images.pixels(index).to(device), int(self.data.labels[index]))

    def _by_loss(self, model: TunedModel, progress: Progress, rows: int) -> tuple[float, ValidationLoss]:
        batches = [self.indices[start : start + rows].tolist() for start in range(0, len(self.indices), rows)]
        own = batches[self.team.rank :: self.team.size]
        progress.start("validation", sum(map(len, own)))
        total = 0.0
        with self.team.agree():
            for indices in own:
                total += len(indices) * self._loss(model, indices)
                for _ in indices:
                    progress.advance()
        loss = float(self.team.sum(torch.tensor(total, dtype=torch.float64))) / len(self.indices)
        result: ValidationLoss = {"loss": loss, "n": len(self.indices)}
        if self.data.captions is not None and self.data.labels is not None:
            result["clean"] = self._clean(model)
        return -loss, result

    @torch.no_grad()
    def _clean(self, model: TunedModel) -> Accuracy:
        """Accuracy on clean images, by this process's part of them and those of the others."""
        assert self.data.labels is not None
        text = model()
        classifier = TunedClassifier(model.image, text, self.objective.logit_scale).eval()
        own = self.indices[self.team.part(len(self.indices))].tolist()
        right = [
            int(classifier(self.images.pixels(i)[None].to(text.device)).argmax()) == self.data.labels[i] for i in own
        ]
        return accuracy_of(int(self.team.sum(torch.tensor(sum(right)))), len(self.indices))

    def _loss(self, model: TunedModel, indices: list[int]) -> float:
        """Of these images, in one pass."""
        items = [self.images.plain(i, random_key(self.config.seed, EPOCH, i)) for i in indices]
        batch = collate(items)
        batch = batch._replace(pixels=batch.pixels.to(model.image.mean.device))
        with torch.no_grad():
            terms = self.objective(model, batch, END_OF_TRAINING, forward=model)
        return float(sum(terms.losses.values()))


def describe_validation(result: Accuracies | ValidationLoss) -> str:
    """What validation found, on one line."""
    if "loss" in result:
        accuracy = f", clean {100 * result['clean']['accuracy']:.1f} %" if "clean" in result else ""
        return f"loss {result['loss']:.4g}{accuracy}"
    clean, robust = result["clean"]["accuracy"], result["robust"]["accuracy"]
    return f"clean {100 * clean:.1f} %, PGD-10 {100 * robust:.1f} %"
