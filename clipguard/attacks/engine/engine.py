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
from clipguard.attacks.engine.verification import Verifier
from clipguard.attacks.methods.apgd import APGD
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.state import AttackState
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
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        threat: ThreatModel,
        eps_values: Iterable[float],
        options: EngineOptions,
        note: Note = ignore_outcome,
    ) -> None:
        options = replace(options, stop_cycles=options.stop_cycles and recipe.eot == 1)
        self.threat, self.options = threat, options
        self.evaluator = Evaluator(
            model, options.batch_size or 1, options.precision, recipe.eot, options.compile, options.fill
        )
        ascending = sorted(eps_values)
        self._cases = Caseload(recipe, ascending, options, note)
        self._pool = Pool((*recipe.stages, CONFIRMATION), ascending, threat, options)
        self._verifier = Verifier(self.evaluator, threat, self._cases, options.keep_images)

    @property
    def costs(self) -> dict[str, Cost]:
        """Passes and seconds by attack; "clean" and "verification" are the engine's own."""
        return dict(self.evaluator.costs)

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
            self._cases.add(group, *self.evaluator.predict(group))
        return bool(batch)

    def _step(self, shape: torch.Size) -> None:
        """Evaluate the next point of every row of this shape once, and let each attack move on."""
        states = self._pool.pop(shape)
        queries = [self._query(self._pool.stages[stage], state) for (stage, _), state in states.items()]
        for key, evaluation in zip(states, evaluate(self.evaluator, queries), strict=True):
            self._advance(key, evaluation)

    def _query(self, attack: Attack, state: AttackState) -> Query:
        x = attack.query(state)
        return Query(attack, state, x, self.threat.admissible(x, state["x0"], state["eps"]))

    def _advance(self, key: Key, evaluation: Evaluation) -> None:
        """Take out what is broken, move the rest on, and follow the images some of whose units have ended."""
        if self._cases.stale:
            evaluation = evaluation.take(self._cases.wanted(evaluation.query.state))
        broken = self._verifier.judge(evaluation)
        changed = evaluation.query.state["item"][broken].tolist()
        if broken.any():
            evaluation = evaluation.take((~broken).nonzero().squeeze(1))
        changed += self._move_on(key, evaluation)
        self._pool.launch([start for number in dict.fromkeys(changed) for start in self._cases.settle(number)])

    def _move_on(self, key: Key, evaluation: Evaluation) -> list[int]:
        """Let the attack take its step, and put its rows back; returns the images some of whose units have ended."""
        attack, state, x = evaluation.query.attack, evaluation.query.state, evaluation.query.x
        if not state.n:
            return []
        attack.update(state, self.threat, x, evaluation.logits, evaluation.loss, evaluation.gradient)
        state["step"] = state["step"] + 1
        over = attack.finished(state) | self._cut_cycles(attack, state)
        ended: list[int] = []
        if over.any():
            ended = self._cases.end_units(state.take(over.nonzero().squeeze(1)))
            state = state.take((~over).nonzero().squeeze(1))
        if state.n:
            self._pool.add(key, state)
        return ended

    def _cut_cycles(self, attack: Attack, state: AttackState) -> Tensor:
        """(B,) bool, rows that will find nothing new any more; counts the passes which that saves."""
        if "anchor" not in state:
            return torch.zeros_like(state["step"], dtype=torch.bool)
        over = repeated(state, attack.query(state))
        left = attack.iterations + 1 - state["step"]
        self.evaluator.costs[attack.full_name].skipped += int((left * over).sum())
        return over
