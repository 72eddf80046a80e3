"""Runs a recipe over a stream of images, as many at once as fit, at every eps.

Continuous batching: the pool always holds up to `batch_size` rows that still need work. An image leaves the moment it
is verified broken or its last unit ends, and the next one takes its place; images at different attacks, targets and eps
share each pass. When no image is left to fill it, the later runs, attacks and eps of those in it do (see schedule.py).
What happens to an image does not depend on any of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clipguard.attacks.base import Attack
from clipguard.attacks.engine.caseload import Caseload, Start
from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.cycles import repeated
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example, ImageOutcome, Note, ignore_outcome
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen
from clipguard.attacks.engine.passes.joint_pass import Evaluation, Query, evaluate
from clipguard.attacks.engine.pool import Key, Pool
from clipguard.attacks.engine.rows import Rows, read
from clipguard.attacks.engine.verification import Claims, Verifier
from clipguard.attacks.methods.apgd import APGD
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel

CONFIRMATION = APGD(iterations=20)  # what a survivor of a larger eps still faces at a smaller one, in nested mode


class Engine:
    """One recipe, one threat, several eps.

    Args:
        model: a module in eval mode: pixels (B, C, H, W) in [0,1] -> logits (B, classes).
        recipe: the attacks.
        threat: norm of the ball, and whether images are 8-bit images.
        eps_values: in pixel units, in any order.
        options: how to run.
        note: is told of what is found at each eps as soon as it is.
        judge: decides what an image is taken for, where `model` only stands in for it while attacks search.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        threat: ThreatModel,
        eps_values: Iterable[float],
        options: EngineOptions,
        note: Note = ignore_outcome,
        judge: nn.Module | None = None,
    ) -> None:
        options = replace(options, stop_cycles=options.stop_cycles and recipe.eot == 1)
        self.threat, self.options = threat, options
        self.evaluator = Evaluator(
            model,
            options.batch_size or 1,
            options.precision,
            recipe.eot,
            options.compile,
            options.fill,
            options.small_rows,
            judge,
        )
        ascending = sorted(eps_values)
        self._cases = Caseload(recipe, ascending, options, note)
        self._pool = Pool((*recipe.stages, CONFIRMATION), ascending, threat, options)
        self._verifier = Verifier(self.evaluator, threat, self._cases, options)

    @property
    def costs(self) -> dict[str, Cost]:
        """Passes and seconds by attack; "clean" and "verification" are the engine's own."""
        return self.evaluator.costs.settled()

    @property
    def passes(self) -> int:
        """Forward passes so far, in images."""
        return self.evaluator.costs.passes

    def run(self, examples: Iterable[Example]) -> Iterator[ImageOutcome]:
        """Attack all examples; outcomes come as images finish.

        Raises:
            AttackError: for bad labels, images outside [0,1], non-finite outputs, or a model in train mode.
        """
        stream = iter(examples)
        with frozen(self.evaluator.model):
            if self.options.batch_size is None:
                stream = self.evaluator.fit_batches(stream)
            while self._fill_pool(stream) or self._pool:
                for shape in self._pool.shapes():
                    self._step(shape)
                yield from self._cases.done
                self._cases.done.clear()

    def _fill_pool(self, stream: Iterator[Example]) -> bool:
        """Take in images from the stream, or what lies ahead of those in the pool; false at the end."""
        if self._cases.stale:
            self._pool.keep(self._cases.wanted)
            self._cases.stale = False
        room = self.evaluator.batch_size - len(self._pool)
        starts: list[Start] = []
        read = False
        while len(starts) < room:
            if not self._cases.waiting and not self._clean_pass(stream):
                starts += self._cases.begin_ahead(room - len(starts))
                break
            read = True
            if not self._cases.waiting:  # every image of that batch is finished already: report before going on
                break
            starts.append(self._cases.begin_waiting())
        self._pool.launch(starts)
        return read

    def _clean_pass(self, stream: Iterator[Example]) -> bool:
        """Predict the next images; false if there are none."""
        batch = list(islice(stream, self.evaluator.batch_size))
        by_shape: dict[torch.Size, list[Example]] = {}
        for example in batch:
            by_shape.setdefault(example.image.shape, []).append(example)
        for group in by_shape.values():
            self._cases.add(self.evaluator.predict(group))
        return bool(batch)

    def _step(self, shape: torch.Size) -> None:
        """Evaluate the next point of every row of this shape once, and let each attack move on.

        The device is asked twice: what the search claims, and, when that was verified and the attacks have moved on,
        what came of it.
        """
        tables = self._pool.pop(shape)
        queries = [self._query(self._pool.stages[stage], rows) for (stage, _), rows in tables.items()]
        evaluations = evaluate(self.evaluator, queries)
        claims = self._verifier.judge(evaluations)
        progress = [self._move_on(evaluation) for evaluation in evaluations]
        answers = read([*(claim.verdicts for claim in claims), *progress])
        verdicts, moved = answers[: len(claims)], answers[len(claims) :]
        self._verifier.check(claims, verdicts)
        for key, claim, verdict, progressed in zip(tables, claims, verdicts, moved, strict=True):
            self._settle(key, claim, verdict, progressed)

    def _query(self, attack: Attack, rows: Rows) -> Query:
        x, state = attack.query(rows.state), rows.state
        return Query(attack, rows, x, self.threat.admissible(x, state["x0"], state["eps"]))

    def _move_on(self, evaluation: Evaluation) -> Tensor:
        """Let the attack take its step.

        Returns:
            (4, B) what the rows say then: whether their run is over, the passes that are left where it repeats itself,
            whether they want a gradient next, and the smallest margin.
        """
        attack, state, x = evaluation.query.attack, evaluation.query.state, evaluation.query.x
        attack.update(state, self.threat, x, evaluation.logits, evaluation.loss, evaluation.gradient)
        state["step"] = state["step"] + 1
        over, left = attack.finished(state), torch.zeros_like(state["step"])
        if "anchor" in state:
            again = repeated(state, attack.query(state)) & ~over
            over, left = over | again, (attack.iterations + 1 - state["step"]) * again
        columns = (over, left, attack.wants_gradient(state), state["best_margin"])
        return torch.stack([column.double() for column in columns])

    def _settle(
        self, key: Key, claims: Claims, verdicts: npt.NDArray[np.float64], moved: npt.NDArray[np.float64]
    ) -> None:
        """Take out what is broken or over, put the rest back, and follow the images some of whose units have ended."""
        rows, attack = claims.query.rows, claims.query.attack
        over, left, wants, margins = moved
        broken, changed = self._verifier.report(claims, verdicts)
        stays = np.ones(len(rows.units), dtype=bool)
        stays[broken] = False
        ended = np.flatnonzero(stays & (over > 0))
        if len(ended):
            self.evaluator.costs[attack.full_name].skipped += int(left[ended].sum())
            images = rows.take(ended).state["best_x"] if self.options.keep_images else None
            changed += self._cases.end_units(rows.units[ended], margins[ended].tolist(), images)
        rows.wants = wants > 0
        if len(rest := np.flatnonzero(stays & (over == 0))):
            self._pool.add(key, rows if len(rest) == len(rows.units) else rows.take(rest))
        self._pool.launch([start for number in dict.fromkeys(changed) for start in self._cases.settle(number)])
