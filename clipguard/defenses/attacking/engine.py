"""Attacks a defended classifier: one way after the other, on the images that are left standing, at every eps."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome, Note, ignore_outcome
from clipguard.attacks.engine.passes.batching import CPU_BATCH
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen, require_finite
from clipguard.attacks.engine.schedule import Case, schedule
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.defenses.attacking.threats import Approach, DefendedModel, ThreatRecipe

Sizes = Counter[tuple[Literal["search", "judge"], int]]
"""Passes by who looked, the search of an attack or the judge, and the number of images, black ones not counted."""


@dataclass
class _Standing:
    """An image that nothing broke so far at an eps."""

    case: Case
    margin: float
    image: Tensor


class DefendedEngine:
    """As `Engine`, of a defended classifier. An image is broken where the judge says so of what an attack ends with.

    Args:
        defended: the classifier.
        recipe: the ways of attack of a threat, or no attack.
        threat: norm of the ball, and whether images are 8-bit images.
        eps_values: in pixel units, in any order.
        options: how to run.
        note: is told of what is found at each eps as soon as it is.

    Attributes:
        costs: passes through the undefended model and seconds, by way of attack; "clean" is the first look.
        sizes: how large its passes were, by way of attack.
    """

    def __init__(
        self,
        defended: DefendedModel,
        recipe: Recipe,
        threat: ThreatModel,
        eps_values: Iterable[float],
        options: EngineOptions,
        note: Note = ignore_outcome,
    ) -> None:
        self.defended, self.threat, self.options, self.note = defended, threat, options, note
        self.eps_values = sorted(eps_values)
        self.approaches = list(recipe.approaches(defended)) if isinstance(recipe, ThreatRecipe) else []
        self.judge = defended.judge("judge")
        size = options.batch_size or CPU_BATCH
        self.evaluator = Evaluator(self.judge, size, fill=options.fill, small_rows=options.small_rows)
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self.sizes: dict[str, Sizes] = defaultdict(Counter)

    @property
    def passes(self) -> int:
        """Passes through the undefended model so far, in images."""
        return self.defended.count.forward

    def run(self, examples: Iterable[Example]) -> Iterator[ImageOutcome]:
        """Attack all examples; outcomes come batch by batch. Raises AttackError like the default engine."""
        stream = iter(examples)
        with frozen(self.defended.model):
            while batch := list(islice(stream, self.evaluator.batch_size)):
                by_shape = defaultdict(list)
                for example in batch:
                    by_shape[example.image.shape].append(example)
                for group in by_shape.values():
                    yield from self._run_batch(group)

    def _run_batch(self, batch: Sequence[Example]) -> Iterator[ImageOutcome]:
        """Attack images of one shape at every eps."""
        with self._charged("clean"):
            clean = self.evaluator.predict(batch)
        mode = self.options.eps_mode
        plans = (schedule(mode, len(self.eps_values)) for _ in batch)
        cases = [Case(*parts) for parts in zip(batch, clean.predictions, clean.margins, plans, strict=True)]
        for case in cases:
            self.note(case.example, case.clean_prediction, case.clean_outcome(0.0, None))
        faced = [case for case in cases if case.clean_prediction == case.example.label and case.advance(None)]
        while faced and self.approaches:
            # All of these are at the same eps: each step of a schedule is one eps up.
            self._face(faced[0].eps_index, [case for case in faced if not self._is_known(case)])
            faced = [case for case in faced if case.advance(not case.outcomes[case.eps_index].robust)]
        for case in cases:
            yield case.outcome(self.eps_values, self._kept(case.example.image))

    def _is_known(self, case: Case) -> bool:
        """Whether the outcome at the eps of a case is known from an earlier run, or is that of the clean image."""
        eps = self.eps_values[case.eps_index]
        known = case.clean_outcome(0.0, self._kept(case.example.image)) if eps == 0 else case.example.known.get(eps)
        if known is not None:
            case.outcomes[case.eps_index] = known
        return known is not None

    def _face(self, eps_index: int, cases: Sequence[Case]) -> None:
        """Attack images at one eps, way after way, until they break."""
        eps = self.eps_values[eps_index]
        standing = [_Standing(case, case.clean_margin, case.example.image) for case in cases]
        for approach in self.approaches:
            if not standing:
                return
            standing = self._attack(approach, eps, eps_index, standing)
        for one in standing:
            case = one.case
            survived = EpsOutcome(eps, True, case.clean_prediction, None, 0.0, one.margin, self._kept(one.image))
            self._found(case, eps_index, survived)

    def _attack(self, approach: Approach, eps: float, eps_index: int, standing: Sequence[_Standing]) -> list[_Standing]:
        """One way of attack; returns what it leaves standing."""
        with self._charged(approach.full_name):
            options = replace(self.options, keep_images=True, confidence=approach.confidence, eps_mode="independent")
            recipe = Recipe(approach.full_name, (approach.attack,))
            judge = self.defended.judge("check")
            engine = Engine(approach.search, recipe, self.threat, [eps], options, judge=judge)
            examples = (replace(one.case.example, known={}) for one in standing)
            found = {outcome.index: outcome.eps_outcomes[0].image for outcome in engine.run(examples)}
            device = standing[0].case.example.image.device
            images = [found[one.case.example.index] for one in standing]
            x = torch.stack([image for image in images if image is not None]).to(device)
            x0 = torch.stack([one.case.example.image for one in standing])
            self.judge.tell(x, x0)
            logits = self.evaluator.verify(x)
            self._note_sizes(approach.full_name, engine, len(x))
            index = [one.case.example.index for one in standing]
            require_finite(logits, index.__getitem__, f"under {approach.full_name}")
        labels = torch.tensor([one.case.example.label for one in standing])
        inside = self.threat.contains(x, x0, torch.full((len(x),), eps, device=device)).tolist()
        distances, logits = self.threat.distance(x, x0).tolist(), logits.cpu()
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        margins = (logits.gather(1, labels[:, None]).squeeze(1) - others).tolist()
        left = []
        for k, one in enumerate(standing):
            prediction = int(logits[k].argmax())
            if inside[k] and prediction != one.case.example.label:
                kept = self._kept(x[k])
                by = approach.full_name
                self._found(one.case, eps_index, EpsOutcome(eps, False, prediction, by, distances[k], margins[k], kept))
            else:
                better = inside[k] and margins[k] < one.margin
                left.append(_Standing(one.case, margins[k], x[k]) if better else one)
        return left

    @contextmanager
    def _charged(self, name: str) -> Iterator[None]:
        """Charges passes of the undefended model, and their time, to a name."""
        count, started = self.defended.count, time.perf_counter()
        forward, backward = count.forward, count.backward
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.costs[name] += Cost(count.forward - forward, count.backward - backward, seconds)

    def _note_sizes(self, name: str, engine: Engine, judged: int) -> None:
        """Of the passes of an engine, and of the judge's at the end, of so many images."""
        sizes = self.sizes[name]
        for (stage, n), count in engine.evaluator.costs.sizes.items():
            sizes["judge" if stage in ("clean", "verification") else "search", n] += count
        sizes["judge", judged] += 1

    def _found(self, case: Case, eps_index: int, outcome: EpsOutcome) -> None:
        case.outcomes[eps_index] = outcome
        self.note(case.example, case.clean_prediction, outcome)

    def _kept(self, image: Tensor) -> Tensor | None:
        return image.cpu().clone() if self.options.keep_images else None
