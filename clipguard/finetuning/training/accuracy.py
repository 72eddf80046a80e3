"""How good a model is while it is trained, and when it is done: clean and PGD-10 accuracy, by the attack engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from clipguard.attacks.engine.engine import Engine, EngineOptions, Example
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.progress import Progress
from clipguard.finetuning.config import FinetuneConfig
from clipguard.statistics.intervals import wilson_interval

ATTACK = "pgd-10"
PASSES = 13  # of an image that holds: clean, its random start and ten steps, and a check


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `n` images, with the 95 % Wilson interval of the share."""

    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float

    @classmethod
    def of(cls, correct: int, n: int) -> Accuracy:
        """From counts; n at least 1."""
        return cls(n, correct, correct / n, *wilson_interval(correct, n))


@dataclass(frozen=True)
class Score:
    """Accuracy on clean images, and under PGD-10 at the training budget (wrong when clean counts as not robust).

    labels, predictions: class numbers of the clean images.
    """

    clean: Accuracy
    robust: Accuracy
    labels: tuple[int, ...] = ()
    predictions: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Of both, in [0,1]: what the best checkpoint is best in."""
        return (self.clean.accuracy + self.robust.accuracy) / 2

    def to_dict(self) -> dict[str, Any]:
        """The accuracies as plain JSON types."""
        return {"clean": asdict(self.clean), "robust": asdict(self.robust)}


def evaluate(
    classifier: nn.Module, examples: Iterable[Example], n: int, config: FinetuneConfig, progress: Progress, what: str
) -> Score:
    """Score a classifier (pixels in [0,1] -> logits, in eval mode) on `n` examples, in float32."""
    options = EngineOptions(config.batch_size, config.seed)
    engine = Engine(classifier, parse_recipe(ATTACK), ThreatModel(config.norm), [config.eps_pixels], options)
    progress.start(what, n)
    robust, labels, predictions = 0, [], []
    for outcome in engine.run(examples):
        labels.append(outcome.label)
        predictions.append(outcome.clean_prediction)
        robust += outcome.eps_outcomes[0].robust
        progress.advance()
    clean = sum(label == said for label, said in zip(labels, predictions, strict=True))
    return Score(Accuracy.of(clean, n), Accuracy.of(robust, n), tuple(labels), tuple(predictions))
