"""Test-time counterattack (Xing et al., CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipguard.core.eps import PIXEL
from clipguard.defenses.base import Backward, Classifier, Purifier, View, with_gradient_of
from clipguard.defenses.gradients import GATE_SLOPE, gradient, live_gradient, soft_gate, soft_sign, twice
from clipguard.defenses.options import at_least


@dataclass(frozen=True)
class TTC(Purifier):
    """Moves an image away from where its embedding is, if noise hardly moves that (section 3, equations 5 to 8).

    Noise delta_0 from U(-eps, eps), kept inside [0,1], is followed by `steps` signed steps that raise
    ||f(x + delta) - f(x)||^2, f the embedding before it is normalised. tau = ||f(x + delta_0) - f(x)|| / ||f(x)||.
    Where tau is below `threshold`, the image was suspiciously stable and gets the mean of all delta_k, weighted by
    exp(beta k); elsewhere it gets delta_0: noise stays on every image, as in the authors' code.

    Decided here: with a fine-tuned tower the authors take tau from the tower before the training; here both are of the
    tower at hand. Noise is drawn at the size of the images, which is the model's there.

    Attributes:
        eps: in units of 1/255, how far the image may be moved.
        steps: of the counterattack.
        step_size: in units of 1/255.
        beta: how much later steps count more.
        threshold: of tau.
    """

    name: ClassVar[str] = "ttc"
    summary: ClassVar[str] = "counterattack in pixels against stable embeddings (Xing et al. 2025)"
    citation: ClassVar[str] = (
        "Xing, Zhao and Sebe. CLIP is Strong Enough to Fight Back: Test-time Counterattacks towards Zero-shot "
        "Adversarial Robustness of CLIP. CVPR 2025. arXiv:2503.03613"
    )
    random: ClassVar[bool] = True
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "surrogate")
    gated: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    eps: float = 4
    steps: int = 2
    step_size: float = 1
    beta: float = 2
    threshold: float = 0.2

    def __post_init__(self) -> None:
        at_least(self, eps=0, steps=1, step_size=0, beta=0, threshold=0)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return self.steps + 4, self.steps

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        start, flagged = self._start(classifier, x, view)
        return x + torch.where(flagged, self._counterattack(classifier, x, view, start), start)

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """Steps with a smooth sign: the derivative of the sign itself is zero."""
        start, flagged = self._start(classifier, x.detach(), view)
        with twice():
            return x + torch.where(flagged, self._counterattack(classifier, x, view, start, smooth=True), start)

    def flagged(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return self._start(classifier, x, view)[1].flatten()

    def relaxations(self) -> tuple[str, ...]:
        return ("both branches", "soft gate") if self.threshold else ("both branches",)

    def relaxed(self, name: str, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """The mean over both sides of the gate, as an image that fools both need not care for tau; or both by how far
        tau is from the threshold, which leads to images that pass and fool the side behind.
        """
        clean = x.detach()
        start, _ = self._start(classifier, clean, view)
        deltas = (start, self._counterattack(classifier, clean, view, start))
        sides = [classifier.logits(with_gradient_of(clean + delta, x), view) for delta in deltas]
        if name == "both branches":
            return torch.stack(sides).mean(dim=0)
        return soft_gate(sides[0], sides[1], GATE_SLOPE * (self._tau(classifier, x, view, start) / self.threshold - 1))

    def _start(self, classifier: Classifier, x: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """delta_0, and which images (B, 1, 1, 1) are to be moved further."""
        start = self._limited((2 * view.draws.rows(x).uniform(*x.shape[1:]) - 1) * self.eps / PIXEL, x)
        with torch.no_grad():
            tau = self._tau(classifier, x, view, start)
        return start, (tau < self.threshold)[:, None, None, None]

    def _tau(self, classifier: Classifier, x: Tensor, view: View, start: Tensor) -> Tensor:
        """(B,)."""
        here = classifier.embed(x, view, normalize=False)
        away = classifier.embed(x + start, view, normalize=False) - here
        tau: Tensor = away.norm(dim=1) / here.norm(dim=1)
        return tau

    def _counterattack(
        self, classifier: Classifier, x: Tensor, view: View, start: Tensor, *, smooth: bool = False
    ) -> Tensor:
        """The weighted mean of delta_0 and of what each step makes of it; differentiable in x if it is smooth."""
        with torch.set_grad_enabled(smooth):
            here = classifier.embed(x, view, normalize=False)

        def moved(point: Tensor) -> Tensor:
            return (classifier.embed(point, view, normalize=False) - here).square().sum(dim=1)

        deltas = [start]
        for _ in range(self.steps):
            point = x + deltas[-1]
            step = soft_sign(live_gradient(moved, point)) if smooth else gradient(moved, point).sign()
            deltas.append(self._limited(deltas[-1] + self.step_size / PIXEL * step, x))
        weights = torch.softmax(self.beta * torch.arange(len(deltas), dtype=torch.float32), dim=0)
        return torch.stack([weight * delta for weight, delta in zip(weights.tolist(), deltas, strict=True)]).sum(dim=0)

    def _limited(self, delta: Tensor, x: Tensor) -> Tensor:
        """Within eps, and the image within [0,1]."""
        limit = self.eps / PIXEL
        return (x + delta.clamp(-limit, limit)).clamp(0, 1) - x
