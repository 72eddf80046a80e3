"""How long passes take here at the batch size of a run: a few real steps of each attack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

import torch

from clipguard.attacks.base import Attack
from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.models.classifier import ZeroShotClassifier

STEPS = 4  # of each attack that is timed
NEARLY_NOTHING = 1e-3 / 255  # eps at which no image falls, so that every row goes on
LEAST_SECONDS = 0.5  # of a measurement: shorter runs are repeated
MOST_REPEATS = 20


@dataclass
class Speed:
    """Seconds of a pass of one image in a full batch, with all that the attack does between passes.

    Attributes:
        clean: of a clean image, with reading and resizing it.
        plain: in float32, without gradient.
        stages: by attack: without gradient, and with one (the same for attacks that use none).
    """

    clean: float
    plain: float
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)

    def seconds(self, stage: str, forward: float, backward: float) -> float:
        """Of so many passes of an attack, of "clean" or of "verification"."""
        if stage == "clean":
            return forward * self.clean
        plain, gradient = self.stages.get(stage, (self.plain, self.plain))
        return (forward - backward) * plain + backward * gradient

    def at_most(self, stage: str, forward: float) -> float:
        """The same, where it is not known how many of them have gradients."""
        return max(self.seconds(stage, forward, backward) for backward in (0, forward))


class Stopwatch:
    """Measures attacks on images which the classifier has predicted.

    Args:
        classifier: the model with its classes.
        options: of the engine, with the batch size of the run.
        threat: of the run.
        examples: at least one; their labels are the predictions, so that all are attacked.
    """

    def __init__(
        self,
        classifier: ZeroShotClassifier,
        options: EngineOptions,
        threat: ThreatModel,
        examples: Sequence[Example],
    ) -> None:
        self.classifier, self.options, self.threat, self.examples = classifier, options, threat, examples

    def plain(self, rows: int) -> float:
        """Seconds of a float32 pass of one of so many rows."""
        cost, seconds = self._run((), 1, rows)
        return seconds / cost["clean"].forward

    def stage(self, stage: Attack, eot: int, rows: int, plain: float) -> tuple[float, float]:
        """Seconds of a pass of an attack without and with gradient; `plain` as above."""
        stage = shortened(stage, STEPS)
        costs, seconds = self._run((stage,), eot, rows)
        cost = costs[stage.full_name]
        seconds -= plain * sum(costs[name].forward for name in ("clean", "verification") if name in costs)
        if not cost.backward:
            return (max(seconds, 0) / cost.forward,) * 2
        gradient = (seconds - plain * (cost.forward - cost.backward)) / cost.backward
        return plain, max(gradient, plain)

    def _run(self, stages: tuple[Attack, ...], eot: int, rows: int) -> tuple[dict[str, Cost], float]:
        """Passes and seconds of attacks on so many rows, after a first time that does not count."""
        recipe, spent, runs = Recipe("speed", stages, eot), 0.0, 0
        engine = Engine(self.classifier, recipe, self.threat, [NEARLY_NOTHING], self.options)
        costs: dict[str, Cost] = {}
        while runs <= 1 or (spent < LEAST_SECONDS and runs <= MOST_REPEATS):
            started = time.perf_counter()
            for _ in engine.run(islice(cycle(self.examples), rows)):
                pass
            if self.examples[0].image.is_cuda:
                torch.cuda.synchronize()
            if runs:
                spent += time.perf_counter() - started
            else:
                first = dict(engine.costs)
                before = {name: replace(cost) for name, cost in first.items()}
            runs += 1
        for name, cost in engine.costs.items():
            costs[name] = Cost(cost.forward - before[name].forward, cost.backward - before[name].backward)
        return costs, spent


def shortened(attack: Attack, steps: int) -> Attack:
    """One run of an attack with so many steps."""
    short, options = {"iterations": steps, "queries": steps, "restarts": 1, "targets": 1}, attack.options()
    return replace(attack, **{name: value for name, value in short.items() if name in options})  # type: ignore[type-var]
