"""Is a defence at test time what it seems? Checks of its rows, and of a few images that go through it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen
from clipguard.attacks.methods.apgd import APGD
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.defenses.attacking.stand_ins import Search, layers
from clipguard.defenses.attacking.threats import DefendedModel
from clipguard.defenses.base import Purifier, View, with_gradient_of
from clipguard.defenses.classifiers import Defended, Undefended
from clipguard.defenses.draws import Draws
from clipguard.sanity.checks import Finding, Verdict, counted, judge, not_checked
from clipguard.statistics.intervals import wilson_interval

STEPS = 20  # of the attacks that make the images
VANISHING = 1e-9  # of the undefended model's gradient: rounding noise
SAME = 1 - 1e-5  # cosine from which on two gradients are the same but for rounding
PASS_CHECKS = ("defense-labels", "defense-gate", "defense-gradient")


def threat_findings(samples: pd.DataFrame, threats: Sequence[str], eps: float) -> list[Finding]:
    """What the rows of one defended model on one data set tell.

    Args:
        samples: its rows.
        threats: that it was attacked under.
        eps: the largest, as in the rows.
    """
    weak = "adaptive" not in threats
    alone = f"{' and '.join(threats)} alone: whoever knows the defence attacks through it"
    findings = [Finding("weak-threat", "failure" if weak else "ok", alone if weak else f"{', '.join(threats)}")]
    if weak or "transfer" not in threats:
        return [*findings, not_checked("defense-gap", "it takes the threats transfer and adaptive")]
    here = samples[samples["eps"] == eps]
    left = {t: set(here[(here["attack"] == t) & here["robust"]]["index"]) for t in threats}
    claimed, kept = left["transfer"], set.intersection(*left.values())
    if not claimed:
        return [*findings, not_checked("defense-gap", "transferred attacks leave nothing standing")]
    what = f"images that transferred attacks leave standing at eps {eps:g} fall to others"
    return [*findings, counted("defense-gap", len(claimed - kept), len(claimed), what)]


@dataclass
class DefenseProbe:
    """Examines a defended model on a few images.

    Attributes:
        defended: the model.
        x: images (N, C, H, W) in [0,1], which are attacked.
        labels: (N,) class numbers.
        indices: of the images in their data set; they seed the attacks.
        threat: the ball.
        eps: its size, in pixel units.
        options: of the engine.
        clean: (M, C, H, W) in [0,1], which gates are shown; None: x.
    """

    defended: DefendedModel
    x: Tensor
    labels: Tensor
    indices: Sequence[int]
    threat: ThreatModel
    eps: float
    options: EngineOptions
    clean: Tensor | None = None

    def findings(self) -> list[Finding]:
        """Those of `PASS_CHECKS`, in that order."""
        with frozen(self.defended.model), torch.no_grad():
            transferred = self._attacked(self._undefended())
            return [self._labels(transferred), self._gate(), self._gradient()]

    def _undefended(self) -> Search:
        defended = self.defended
        return Search(Undefended(defended.model, count=defended.count), defended.model, defended.seed)

    def _labels(self, transferred: Tensor) -> Finding:
        """Does the defence change labels of attacked images, or of clean ones?"""
        changed = {"clean": self._changed(self.x), "attacked": self._changed(transferred)}
        n = len(self.x)
        clean, attacked = int(changed["clean"].sum()), int(changed["attacked"].sum())
        low, high = wilson_interval(clean, n)
        evidence = (
            f"it changes the label of {clean} of {n} clean images (95 % interval {100 * low:.0f}–{100 * high:.0f} %) "
            f"and of {attacked} that were attacked on the undefended model"
        )
        verdict: Verdict = "warning" if clean > attacked else "ok"
        return Finding("defense-labels", verdict, evidence, {"clean": clean, "attacked": attacked, "n": n})

    def _changed(self, x: Tensor) -> Tensor:
        before = self._evaluator(self._undefended()).verify(x).argmax(dim=1)
        return self._evaluator(self.defended.judge("judge")).verify(x).argmax(dim=1) != before

    def _gate(self) -> Finding:
        """Does the gate see images that were attacked through the defence?"""
        gates = [layer for layer in layers(self.defended.classifier) if layer.defense.gated]
        if not gates:
            return not_checked("defense-gate", "it treats all images alike")
        if any(not isinstance(layer.defense, Purifier) for layer in layers(self.defended.classifier)[: self._depth]):
            return not_checked("defense-gate", "it is inside a defence that gives it no single image")
        search = Search(self.defended.classifier, self.defended.model, self.defended.seed, draws=self._draws)
        adaptive = self._attacked(search)
        defended = self._evaluator(self.defended.judge("judge"))
        wrong = defended.verify(adaptive).argmax(dim=1) != self.labels
        wrong &= defended.verify(self.x).argmax(dim=1) == self.labels
        shown, seen = self.x if self.clean is None else self.clean, self._flagged(adaptive)
        parts: tuple[Tensor, ...] = torch.split(shown, len(self.x))
        flagged = int(torch.cat([self._flagged(part) for part in parts]).sum())
        n, broken, passed = len(shown), int(wrong.sum()), int((wrong & ~seen).sum())
        low, high = wilson_interval(flagged, n)
        false = f"it flags {flagged} of {n} clean images (95 % interval {100 * low:.0f}–{100 * high:.0f} %)"
        if not broken:
            return Finding("defense-gate", "ok", f"{false}; no image was broken", {"flagged": flagged, "n": n})
        evidence = f"{false}; {passed} of {broken} images that were broken through the defence pass it"
        numbers = {"flagged": flagged, "n": n, "passed": passed, "broken": broken}
        return Finding("defense-gate", judge(passed, broken), evidence, numbers)

    def _flagged(self, x: Tensor) -> Tensor:
        """(N,) bool, whether any gate flags an image on its way through the chain."""
        flagged = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        view = View(Draws(self.defended.seed))
        for layer in layers(self.defended.classifier):
            view = view.of(layer.defense, x)
            if layer.defense.gated:
                flagged |= layer.defense.flagged(layer.classifier, x, view)
            if not isinstance(layer.defense, Purifier):
                break  # nothing inside has a gate: see `_gate`
            x = layer.defense.purify(layer.classifier, x, view).detach()
        return flagged

    def _gradient(self) -> Finding:
        """Is each gradient that a defence offers one of its own, and not zero?"""
        problems: list[tuple[bool, str]] = []
        said = []
        leaf = self.x.clone().requires_grad_()
        with torch.enable_grad():
            logits = self._undefended()(leaf).gather(1, self.labels[:, None]).sum()
            undefended = torch.autograd.grad(logits, leaf)[0].flatten(1).abs().amax(dim=1)
        for layer in layers(self.defended.classifier):
            for backward in layer.defense.backwards:
                size, cosine = self._compared(layer, View(Draws(self.defended.seed, "search"), backward))
                name = f"{layer.defense.name}: {backward}"
                zero = int((size <= VANISHING * undefended).sum())
                if zero:
                    problems.append((True, f"{name} is zero or vanishing on {zero} of {len(size)} images"))
                elif backward != "identity" and cosine is not None and bool((cosine > SAME).all()):
                    problems.append((False, f"{name} is that of leaving the image as it is, under another name"))
                else:
                    said.append(name)
        verdict: Verdict = "ok" if not problems else "failure" if any(grave for grave, _ in problems) else "warning"
        evidence = "; ".join(text for _, text in problems) or f"not zero, and not the identity's: {', '.join(said)}"
        return Finding("defense-gradient", verdict, evidence)

    def _compared(self, layer: Defended, view: View) -> tuple[Tensor, Tensor | None]:
        """(N,) sizes of a gradient, and (K,) its cosine with that at the changed image, for images that are changed."""
        labels = self.labels[:, None]
        leaf = self.x.clone().requires_grad_()
        with torch.enable_grad():
            logits = layer.logits(leaf, view)
            own = torch.autograd.grad(logits.gather(1, labels).sum(), leaf)[0].flatten(1)
        sizes = own.abs().amax(dim=1)
        if not isinstance(layer.defense, Purifier):
            if view.backward == "identity" or "identity" not in layer.defense.backwards:
                return sizes, None
            with torch.enable_grad():
                logits = layer.logits(leaf, view.plain())
                plain = torch.autograd.grad(logits.gather(1, labels).sum(), leaf)[0].flatten(1)
            return sizes, F.cosine_similarity(own.double(), plain.double(), dim=1)
        changed = layer.defense.purify(layer.classifier, self.x, view.of(layer.defense, self.x)).detach()
        is_changed = (changed != self.x).flatten(1).any(dim=1)
        if layer.defense.gated:
            is_changed &= layer.defense.flagged(layer.classifier, self.x, view.of(layer.defense, self.x))
        if not is_changed.any():
            return sizes, None
        leaf = self.x.clone().requires_grad_()
        with torch.enable_grad():
            logits = layer.classifier.logits(with_gradient_of(changed, leaf), view.of(layer.defense, self.x))
            identity = torch.autograd.grad(logits.gather(1, labels).sum(), leaf)[0].flatten(1)
        return sizes, F.cosine_similarity(own.double(), identity.double(), dim=1)[is_changed]

    @property
    def _depth(self) -> int:
        """How many defences stand around the innermost one with a gate."""
        gated = [k for k, layer in enumerate(layers(self.defended.classifier)) if layer.defense.gated]
        return max(gated, default=0)

    @property
    def _draws(self) -> int:
        return 1 if self.defended.random else 0

    def _attacked(self, search: Search) -> Tensor:
        """(N, C, H, W) what APGD makes of the images by what it is given to search on."""
        options = EngineOptions(
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            fill=self.options.fill,
            small_rows=self.options.small_rows,
            keep_images=True,
            confidence=math.inf,
        )
        recipe = Recipe("probe", (APGD(iterations=STEPS),))
        engine = Engine(search, recipe, self.threat, [self.eps], options)
        outcomes = sorted(engine.run(self._examples()), key=lambda outcome: self.indices.index(outcome.index))
        images = [outcome.eps_outcomes[0].image for outcome in outcomes]
        return torch.stack([image for image in images if image is not None]).to(self.x.device)

    def _examples(self) -> Iterator[Example]:
        for index, image, label in zip(self.indices, self.x, self.labels.tolist(), strict=True):
            yield Example(index, image, label)

    def _evaluator(self, module: Search | torch.nn.Module) -> Evaluator:
        return Evaluator(module, len(self.x), fill=self.options.fill, small_rows=self.options.small_rows)
