"""What passes of a defended model take here: how many of the undefended one, and seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.batching import CPU_BATCH, filled_rows
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.planning.speed import NEARLY_NOTHING, shortened
from clipguard.defenses.attacking.stand_ins import Search, layers
from clipguard.defenses.attacking.threats import Approach, DefendedModel

STEPS = 2  # of each attack that is timed


@dataclass(frozen=True)
class RowCost:
    """What one row of a pass takes.

    Attributes:
        forward: passes through the undefended model, as measured.
        most: the same if the defences take as many as they say at most.
        seconds: of one of these passes, with all that goes on between them.
    """

    forward: float
    most: float
    seconds: float


@dataclass(frozen=True)
class Padding:
    """How many rows passes have, whose black images count as passes of a defended model.

    Attributes:
        options: of the engine.
        least: see `least_rows`.
        on_gpu: whether the model is there.
    """

    options: EngineOptions
    least: int
    on_gpu: bool

    @property
    def batch_size(self) -> int:
        """Rows a pass at most."""
        return self.options.batch_size or CPU_BATCH

    def rows(self, n: float) -> float:
        """Of all passes for so many images; below 1, how likely there is one."""
        if n < 1:
            return n * self._filled(1)
        whole, rest = divmod(round(n), self.batch_size)
        return whole * self._filled(self.batch_size) + (self._filled(rest) if rest else 0)

    def _filled(self, n: int) -> int:
        options, size = self.options, self.batch_size
        return filled_rows(n, options.fill, self.least, size, small=options.small_rows, fixed=self.on_gpu)


class DefendedStopwatch:
    """Measures passes of a defended model on images which it has predicted.

    Args:
        defended: the model, whose passes nobody else counts.
        options: of the engine, with the batch size of the run.
        threat: of the run.
        eps: the largest of the run.
        examples: at least one, of one shape; as many as passes of the run have.
        n_classes: of the data set.
        declared: passes through the undefended model that one look takes at most, as the defences say.
    """

    def __init__(
        self,
        defended: DefendedModel,
        options: EngineOptions,
        threat: ThreatModel,
        eps: float,
        examples: Sequence[Example],
        n_classes: int,
        declared: int,
    ) -> None:
        self.defended, self.options, self.threat, self.eps = defended, options, threat, max(eps, NEARLY_NOTHING)
        self.examples, self.n_classes, self.declared = examples, n_classes, declared
        self.x = torch.stack([example.image for example in examples])
        self.labels = torch.tensor([example.label for example in examples], device=self.x.device)
        self.padding = Padding(options, defended.classifier.least_rows, self.x.is_cuda)
        self.rows = self.padding.rows(len(examples))
        self.looks = defended.votes if defended.random else 1

    def judge(self) -> RowCost:
        """Of who decides."""
        judge = self.defended.judge("judge")
        with frozen(self.defended.model):
            evaluator = self._evaluator(judge)
            self._spent(lambda: evaluator.verify(self.x))
            passes, seconds = self._spent(lambda: evaluator.verify(self.x))
        forward = passes / self.rows
        self.look = forward / self.looks
        return RowCost(forward, max(forward, self.declared * self.looks), seconds / passes)

    def search(self, approach: Approach) -> RowCost:
        """Of a point of an attack, with its gradient if it asks for any; after `judge`."""
        attack, targets = approach.attack, (self.labels + 1) % self.n_classes

        def loss(logits: Tensor, start: int, stop: int) -> Tensor:
            return attack.loss(logits, self.labels[start:stop], targets[start:stop])

        evaluator = self._evaluator(approach.search)
        with frozen(self.defended.model):
            point = (lambda: evaluator.logits(self.x)) if attack.black_box else lambda: evaluator.gradient(self.x, loss)
            forward = self._spent(point)[0] / self.rows
            passes, seconds = self._spent(lambda: self._attack(approach))
        longer = max(0.0, self.declared - self.look) * self._looks_of(approach)
        return RowCost(forward, forward + longer, seconds / passes)

    def _looks_of(self, approach: Approach) -> int:
        """How often a point is looked at through all defences: never where the search is on something else."""
        search = approach.search
        if not isinstance(search, Search) or search.relaxed is not None or not layers(search.classifier):
            return 0
        return search.draws or 1

    def _attack(self, approach: Approach) -> None:
        """A few steps, to their end on every image."""
        options = replace(self.options, keep_images=True, confidence=math.inf, eps_mode="independent")
        recipe = Recipe(approach.full_name, (shortened(approach.attack, STEPS),))
        judge = self.defended.judge("check")
        for _ in Engine(approach.search, recipe, self.threat, [self.eps], options, judge=judge).run(self.examples):
            pass

    def _evaluator(self, module: torch.nn.Module) -> Evaluator:
        options, size = self.options, self.padding.batch_size
        return Evaluator(module, size, options.precision, fill=options.fill, small_rows=options.small_rows)

    def _spent(self, work: Callable[[], object]) -> tuple[int, float]:
        """Passes and seconds of what is done."""
        before, started = self.defended.count.forward, time.perf_counter()
        work()
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return self.defended.count.forward - before, time.perf_counter() - started
