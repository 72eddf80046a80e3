"""How accurate a classifier is, on clean images and under PGD-10, by the attack engine.

Validation while a model is trained, and the evaluation when it is done, count by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict, final

from torch import nn

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.progress import Progress
from clipguard.finetuning.config import FinetuneConfig
from clipguard.statistics.intervals import wilson_interval

ATTACK = "pgd-10"
PASSES = 13  # of an image that holds: clean, its random start and ten steps, and a check


class Accuracy(TypedDict):
    """`correct` of `n` images, with the 95 % Wilson interval of the share."""

    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float


@final  # so that a union with another record can be told apart by its keys
class Accuracies(TypedDict):
    """On clean images, and under PGD-10 at the training eps (wrong when clean counts as not robust)."""

    clean: Accuracy
    robust: Accuracy


@dataclass(frozen=True)
class Score:
    """What a classifier's predictions come to.

    Attributes:
        accuracies: clean and under PGD-10.
        labels, predictions: class numbers of the clean images.
    """

    accuracies: Accuracies
    labels: tuple[int, ...]
    predictions: tuple[int, ...]


def accuracy_of(correct: int, n: int) -> Accuracy:
    """The accuracy of `correct` of `n` images; n at least 1."""
    low, high = wilson_interval(correct, n)
    return {"n": n, "correct": correct, "accuracy": correct / n, "ci_low": low, "ci_high": high}


def score(
    classifier: nn.Module, examples: Iterable[Example], n: int, config: FinetuneConfig, progress: Progress, what: str
) -> Score:
    """Score a classifier on images, in float32.

    Args:
        classifier: pixels (B, 3, H, W) in [0,1] -> logits (B, C), in eval mode.
        examples: images with labels.
        n: how many they are, at least 1.
        config: gives norm, eps, batch size and seed.
        progress: told of each image.
        what: the name of this part of the run.
    """
    options = EngineOptions(config.batch_size, config.seed)
    engine = Engine(classifier, parse_recipe(ATTACK), ThreatModel(config.norm), [config.eps_pixels], options)
    progress.start(what, n)
    robust, labels, predictions = 0, [], []
    for outcome in engine.run(examples):
        labels.append(outcome.label)
        predictions.append(outcome.clean_prediction)
        robust += outcome.eps_outcomes[0].robust
        progress.advance()
    clean = sum(label == prediction for label, prediction in zip(labels, predictions, strict=True))
    return Score({"clean": accuracy_of(clean, n), "robust": accuracy_of(robust, n)}, tuple(labels), tuple(predictions))
