"""The same cells through the reference AutoAttack (`pyautoattack`), for anyone who wants a second opinion.

What the library lacks is added around it: fewer than 10 classes, NaN as an error, float32 re-verification inside
the ball, and which attack broke which image. What cannot be mended from outside: its random numbers belong to the
batch, so outcomes near the edge depend on the batch size and on the other images, and it never stops early.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from clipguard.attacks import losses
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome, Note, ignore_outcome
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen
from clipguard.attacks.engine.schedule import Case, schedule
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.errors import AttackError

SUPPORTED = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
LEAST_CLASSES = 4  # targeted DLR reads the four largest logits
LIBRARY_NORMS = {"linf": "Linf", "l2": "L2"}


class _Padded(nn.Module):
    """The model as the library sees it: counted, with classes that can never win, and stopped at the first NaN."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.attack = ""
        self.batch: list[Example] = []

    def forward(self, x: Tensor) -> Tensor:
        cost = self.evaluator.costs[self.attack]
        cost.forward += len(x)
        logits: Tensor = self.evaluator.model(x).float()
        bad = (~torch.isfinite(logits)).any(dim=1)
        if bad.any():
            index = self._nearest_index(x[bad][0].detach())
            raise AttackError(f"The model gives NaN or infinite values under {self.attack} (image {index}).")
        if torch.is_grad_enabled() and x.requires_grad:
            logits.register_hook(lambda g: _count(cost, len(x), g))  # type: ignore[no-untyped-call]
        missing = LEAST_CLASSES - logits.shape[1]
        if missing > 0:
            never = logits.detach().amin(dim=1, keepdim=True) - 1e4
            logits = torch.cat([logits, never.expand(-1, missing)], dim=1)
        return logits

    def _nearest_index(self, x: Tensor) -> int:
        """The index of the image that a point (C, H, W) belongs to; the library does not tell."""
        clean = torch.stack([e.image for e in self.batch])
        return self.batch[int((clean - x).flatten(1).abs().amax(dim=1).argmin())].index


def _count(cost: Cost, n: int, gradient: Tensor) -> Tensor:
    cost.backward += n
    return gradient


class ReferenceEngine:
    """As `Engine`, with every eps attacked on its own and whole batches at a time; what is known is not used.

    Args:
        model: as for `Engine`.
        recipe: attacks that the library has, without eot.
        threat: without 8-bit images.
        eps_values: in pixel units, in any order.
        options: float32, not compiled.
        note: is told of what is found at each eps.

    Raises:
        AttackError: for what the library cannot do.
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
        _check_supported(recipe, threat, options)
        self.model, self.recipe, self.threat, self.options, self.note = model, recipe, threat, options, note
        self.eps_values = sorted(eps_values)
        self.evaluator = Evaluator(model, options.batch_size or 1)

    @property
    def costs(self) -> dict[str, Cost]:
        """Passes and seconds by attack; "clean" and "verification" are the engine's own."""
        return self.evaluator.costs.settled()

    @property
    def passes(self) -> int:
        """Forward passes so far, in images."""
        return self.evaluator.costs.passes

    def run(self, examples: Iterable[Example]) -> Iterator[ImageOutcome]:
        """Outcomes batch by batch. Raises AttackError like the default engine."""
        stream = iter(examples)
        with frozen(self.model):
            if self.options.batch_size is None:
                stream = self.evaluator.fit_batches(stream)
            while batch := list(islice(stream, self.evaluator.batch_size)):
                by_shape = defaultdict(list)
                for example in batch:
                    by_shape[example.image.shape].append(example)
                for group in by_shape.values():
                    yield from self._run_batch(group)

    def _run_batch(self, batch: list[Example]) -> Iterator[ImageOutcome]:
        """Attack images of one shape at every eps."""
        clean = self.evaluator.predict(batch)
        x, y = clean.x, clean.labels
        padded = _Padded(self.evaluator).eval()
        padded.batch = batch
        plans = (schedule("independent", len(self.eps_values)) for _ in batch)
        cases = [Case(*parts) for parts in zip(batch, clean.predictions, clean.margins, plans, strict=True)]
        for eps_index, eps in enumerate(self.eps_values):
            if eps > 0:
                self._attack(padded, x, y, clean.logits.shape[1], eps_index, cases)
        for case in cases:
            self._note(case)
            yield case.outcome(self.eps_values, case.example.image.cpu() if self.options.keep_images else None)

    def _note(self, case: Case) -> None:
        """Tell what was found at each eps, 0 included."""
        self.note(case.example, case.clean_prediction, case.clean_outcome(0.0, None))
        if case.clean_prediction != case.example.label:
            return
        for eps_index, eps in enumerate(self.eps_values):
            outcome = case.outcomes.get(eps_index) or case.clean_outcome(eps, None)
            self.note(case.example, case.clean_prediction, outcome)

    def _attack(self, padded: _Padded, x: Tensor, y: Tensor, n_classes: int, eps_index: int, cases: list[Case]) -> None:
        """Run the recipe's attacks one after the other on the images still standing, and verify each success."""
        eps = self.eps_values[eps_index]
        for stage in self.recipe.stages:
            right = [i for i, case in enumerate(cases) if case.clean_prediction == case.example.label]
            standing = [i for i in right if eps_index not in cases[i].outcomes]
            if not standing:
                return
            padded.attack = stage.name
            started = time.perf_counter()
            x_adv = self._run_stage(padded, stage, n_classes, x[standing], y[standing], eps)
            self.evaluator.costs[stage.name].seconds += time.perf_counter() - started
            for j, outcome in self._verified(stage, x_adv, x[standing], y[standing], eps):
                cases[standing[j]].outcomes[eps_index] = outcome

    def _verified(
        self, stage: Attack, x_adv: Tensor, x0: Tensor, labels: Tensor, eps: float
    ) -> Iterator[tuple[int, EpsOutcome]]:
        """The rows that are broken, inside the ball and in float32, and their outcomes."""
        with self.evaluator.costs.charged({"verification": len(x_adv)}, {}):
            logits = self.evaluator.verify(x_adv)
        predicted, margin = logits.argmax(dim=1), losses.margin(logits, labels)
        distance = self.threat.distance(x_adv, x0)
        inside = self.threat.contains(x_adv, x0, torch.full_like(distance, eps))
        for j in (inside & (predicted != labels)).nonzero().squeeze(1).tolist():
            image = x_adv[j].cpu().clone() if self.options.keep_images else None
            numbers = (float(distance[j]), float(margin[j]))
            yield j, EpsOutcome(eps, False, int(predicted[j]), stage.name, *numbers, image)

    def _run_stage(self, padded: _Padded, stage: Attack, n_classes: int, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """The images (B, C, H, W) that the library's attack ends with."""
        from pyautoattack import AutoAttack

        if stage.name == "square" and self.threat.norm == "l2" and not _tiles_fit(*x.shape[2:]):
            raise AttackError(f"The library's Square attack fails for l2 on images of {tuple(x.shape[2:])} pixels.")
        norm, seed = LIBRARY_NORMS[self.threat.norm], self.options.seed
        trace = sys.gettrace()  # the library's checks replace it and do not put it back
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # it also reseeds the global generators
            attack = AutoAttack(
                padded, attacks=[stage.name], version="custom", norm=norm, eps=eps, seed=seed, device=x.device
            )
            _set_options(attack, stage, n_classes)
            try:
                x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=self.evaluator.batch_size)
            finally:
                sys.settrace(trace)
        result: Tensor = x_adv.detach()
        return result


def _check_supported(recipe: Recipe, threat: ThreatModel, options: EngineOptions) -> None:
    """Raises AttackError for what the library cannot do."""
    unsupported = [s.name for s in recipe.stages if s.name not in SUPPORTED]
    if unsupported:
        raise AttackError(f"The reference engine has no {unsupported[0]!r}; it has {', '.join(SUPPORTED)}.")
    if threat.quantize:
        raise AttackError("The reference engine cannot attack 8-bit images; leave out `quantize`.")
    if options.precision != "float32" or options.compile:
        raise AttackError("The reference engine runs in float32 and not compiled; choose neither.")
    if recipe.eot != 1:
        raise AttackError("The reference engine is run without eot; use the default engine for randomised models.")
    if any(s.name == "fab-t" and s.restarts != 1 for s in recipe.stages):
        raise AttackError("The reference engine runs fab-t once (the library allows no more); leave out restarts.")


def _set_options(attack: Any, stage: Attack, n_classes: int) -> None:
    """Give the options of a stage to the library's attacks, of which it will run one."""
    options = stage.options()
    attack.apgd.n_restarts = attack.apgd_targeted.n_restarts = attack.square.n_restarts = options["restarts"]
    if "iterations" in options:
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = options["iterations"]
    if "targets" in options:
        n_targets = min(options["targets"], n_classes - 1)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = n_targets
    if "queries" in options:
        attack.square.n_queries = options["queries"]


def _tiles_fit(height: int, width: int) -> bool:
    """Whether the start of the library's l2 Square attack, a grid of tiles a fifth of the height wide, fits."""
    side = height // 5
    first = (height - 5 * side) // 2
    return side == 1 or (side > 1 and all(first + side * (n // side) <= n for n in (height, width)))
