"""What attacks on a defended model would take.

How many passes a point of an attack takes depends on the defence, its draws and the gradient, so no attack can declare
it: it is measured, on a few rows. How many points there are, attacks declare, and a pilot tells how many are needed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.defended import declared_passes
from clipguard.benchmark.planning.bounds import CLEAN, VERIFICATION
from clipguard.benchmark.planning.defended_speed import DefendedStopwatch, Padding, RowCost
from clipguard.benchmark.planning.estimate import Reckoned, Span, total_of
from clipguard.benchmark.planning.pilot import CleanSample, Pilot
from clipguard.benchmark.task import Task
from clipguard.benchmark.workers.blocks import Blocks
from clipguard.benchmark.workers.worker import Worker
from clipguard.defenses.attacking.stand_ins import Search, layers
from clipguard.defenses.attacking.threats import Approach, ThreatRecipe

Passes = dict[str, float]  # forward passes through the undefended model by way of attack


@dataclass
class DefendedWork:
    """A threat, or no attack, on the images of a data set that are left.

    Attributes:
        worker: has the defended model and the data set.
        task: the images.
        recipe: the ways of attack of a threat, or no attack.
        sample: clean predictions.
        left: at least one image.
        unknown: how many eps above 0 each of these may have to face.
        pilot: how a few images fared.
        workers: that share the images.
    """

    worker: Worker
    task: Task
    recipe: Recipe
    sample: CleanSample
    left: Sequence[int]
    unknown: Mapping[int, int]
    pilot: Pilot
    workers: int

    def reckoned(self, standing: float | None) -> Reckoned:
        """All of it.

        Args:
            standing: how many images of `left` are expected to be right when clean; None where no pilot tells how such
                images fare.
        """
        self._open()
        self._measure()
        least, most = 0.0, defaultdict[str, float](float)
        for group in self.groups:
            least += self._least(group)
            n_eps = max(self.unknown[index] for index in group)
            for name, n in self._most(len(group), self._faced(group), n_eps).items():
                most[name] += n
        stages = None if standing is None else self._expected(standing)
        reading = len(self.left) * self.sample.seconds_an_image
        at_most = reading + self._seconds({name: n for name, n in most.items() if name != CLEAN})
        forward, seconds = (total_of(stages, name) for name in ("forward", "seconds"))
        return Reckoned(  # what is measured on few rows is no promise: images that fare worse show that it was too low
            passes=Span(least, forward, max(sum(most.values()), forward or 0)),
            seconds=Span(min(least * self.judge.seconds, at_most), seconds, max(at_most, seconds or 0)),
            longest=self._longest(),
            stages=stages or {},
        )

    def _open(self) -> None:
        """The defended model, its attacks, and which images are attacked side by side."""
        worker, plan = self.worker, self.worker.plan
        worker.settle_fill(self.task, bool(self.recipe.stages))
        defended = worker.defended()
        assert defended is not None
        self.defended, self.n_classes = defended, len(self.task.dataset.class_names)
        self.approaches = list(self.recipe.approaches(defended)) if isinstance(self.recipe, ThreatRecipe) else []
        self.padding = Padding(worker.options, defended.classifier.least_rows, worker.device.startswith("cuda"))
        shares = [list(self.left)]
        if self.workers > 1:
            blocks = Blocks.of(self.recipe, self.left, self.workers, self.n_classes, len(plan.eps))
            shares = [list(block.indices) for block in iter(blocks.take, None)]
        size = self.padding.batch_size
        self.groups = [share[at : at + size] for share in shares for at in range(0, len(share), size)]

    def _measure(self) -> None:
        """What rows take of the judge, and of every way of attack if there is anything to attack."""
        worker, plan = self.worker, self.worker.plan
        faced = max(self._faced(group) for group in self.groups)
        few = sorted(self.sample.predictions)[: self.padding.batch_size]
        examples = [
            Example(example.index, example.image, self.sample.predictions[example.index])
            for example in self.task.only(np.array(few)).examples(worker.preprocess, worker.device)
        ]
        alike = [example for example in examples if example.image.shape == examples[0].image.shape]
        rows = list(islice(cycle(alike), min(faced or len(self.groups[0]), self.padding.batch_size)))
        defenses = [layer.defense for layer in layers(self.defended.classifier)]
        declared, threat = declared_passes(defenses, self.n_classes)[0], ThreatModel(plan.norm, plan.quantize)
        eps = plan.eps[-1].pixels
        watch = DefendedStopwatch(self.defended, worker.options, threat, eps, rows, self.n_classes, declared)
        self.judge = watch.judge()
        self.searches: dict[str, RowCost] = {}
        for approach in self.approaches if faced else []:
            self.searches.setdefault(approach.full_name, watch.search(approach))

    def _faced(self, group: Sequence[int]) -> int:
        """Images of a group that may have an eps to face."""
        return sum(self.sample.right(index) is not False and self.unknown[index] > 0 for index in group)

    def _least(self, group: Sequence[int]) -> float:
        """If each image that is known to be right falls to the first point at every eps that it has to face."""
        clean = self.padding.rows(len(group)) * self.judge.forward
        right = [self.unknown[index] for index in group if self.sample.right(index) and self.unknown[index]]
        if not right or not self.approaches:
            return clean
        first = self.approaches[0]
        looks = 2 * self.judge.forward  # before the attack, and at what it ends with
        if first.confidence == 0:
            looks += self.judge.forward
        if not 0 < first.confidence < math.inf:  # else other draws than the judge's may be against the clean image
            looks += self.searches[first.full_name].forward
        n_eps = 1 if self.worker.plan.eps_mode == "ascending" else min(right)
        return clean + n_eps * self.padding.rows(len(right)) * looks

    def _most(self, n: int, faced: int, n_eps: int) -> Passes:
        """Of a group of n images, if those that may face eps survive every point of every attack."""
        passes, rows = {CLEAN: self.padding.rows(n) * self.judge.most}, self.padding.rows
        if not faced or not n_eps:
            return passes
        claims = 0.0  # rows that are verified of searches whose claims are true
        for approach in self.approaches:
            attack = approach.attack
            units = faced * attack.runs(self.n_classes)
            searched = rows(units) * attack.most_passes()
            judged = 2 * rows(faced)  # before the attack, and at what it ends with
            if _may_be_refused(approach):
                judged += searched
            elif approach.confidence == 0:
                claims = max(claims, min(searched, units * rows(1)))
            one = searched * self.searches[approach.full_name].most + judged * self.judge.most
            passes[approach.full_name] = passes.get(approach.full_name, 0) + n_eps * one
        if claims:
            passes[VERIFICATION] = n_eps * claims * self.judge.most
        return passes

    def _expected(self, standing: float) -> dict[str, dict[str, float]]:
        """Passes and seconds by way of attack, if images fare as those of the pilot."""
        clean = sum(self.padding.rows(len(group)) for group in self.groups) * self.judge.forward
        passes: dict[str, tuple[float, float]] = {CLEAN: (clean, 0.0)}
        for name in self.pilot.sizes if self.searches else ():
            share, cost = self._share(name, standing), self.pilot.costs[name]
            passes[name] = (share * cost.forward, share * cost.backward)
        reading = len(self.left) * self.sample.seconds_an_image
        return {
            name: {
                "forward": round(forward, 1),
                "backward": round(backward, 1),
                "seconds": round(reading if name == CLEAN else self._seconds({name: forward}), 3),
            }
            for name, (forward, backward) in passes.items()
        }

    def _share(self, name: str, standing: float) -> float:
        """How many times the pilot's passes of a way of attack are to be made.

        Of each of its passes it is known how many images it was for: the run has as many times more in a pass as it
        has more images side by side, and fills its passes up in its own way.
        """
        pilot = self.pilot
        before = Padding(pilot.options, self.padding.least, self.padding.on_gpu)
        n_groups = -(-len(pilot.indices) // before.batch_size)
        side_by_side = len(pilot.indices) / n_groups
        weights = {"judge": self.judge.forward, "search": self.searches[name].forward}
        sizes = pilot.sizes[name].items()
        base = sum(count * weights[who] * before.rows(n) for (who, n), count in sizes)
        run = 0.0
        for group in self.groups:
            more = standing * len(group) / len(self.left) / side_by_side
            run += sum(count * weights[who] * self.padding.rows(more * n) for (who, n), count in sizes)
        return run / base / n_groups

    def _longest(self) -> float:
        """Seconds of the last group, if images hold at as many eps as the best of the pilot."""
        if not self.pilot.indices:
            return 0.0
        group = self.groups[-1]
        return self._seconds(self._most(len(group), self._faced(group), max(1, self.pilot.survived)))

    def _seconds(self, passes: Mapping[str, float]) -> float:
        return sum(n * self.searches.get(name, self.judge).seconds for name, n in passes.items())


def _may_be_refused(approach: Approach) -> bool:
    """Whether the judge may be of another opinion than the search, so that every point may be shown to it."""
    search = approach.search
    relaxed = isinstance(search, Search) and search.relaxed is not None
    return approach.confidence != math.inf and (relaxed or approach.confidence > 0)
