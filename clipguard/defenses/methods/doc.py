"""Directional orthogonal counterattack (AAAI 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.eps import PIXEL
from clipguard.defenses.base import Backward, Classifier, Purifier, View, with_gradient_of
from clipguard.defenses.draws import RowDraws
from clipguard.defenses.gradients import GATE_SLOPE, gradient, live_gradient, soft_gate, soft_sign, twice
from clipguard.defenses.options import above, at_least, below


@dataclass(frozen=True)
class DOC(Purifier):
    """Moves an image away from where its embedding is, in partly random directions, as far as noise hardly moves that
    (the paper's algorithm; its code was not found).

    tau = 1 - the mean over `copies` noisy images of cos(f(x + noise), f(x)), w = sigmoid(sharpness (threshold - tau)).
    delta_0 is noise from U(-eps, eps) and m_0 = 0. In each of `steps` steps g is the gradient of ||f(x + delta) -
    f(x)|| over its norm, r standard normal noise without its component along g over its norm, m <- momentum m +
    (1 - momentum) (g + orthogonality r), and delta <- delta + step_size sign(m), kept within eps and the image within
    [0,1]. The image becomes x + w delta_T + (1 - w) delta_0.

    Published are eps, steps and the step. Chosen here, as the supplement that has the rest was not found:
    `copies` 5; `orthogonality` 1, both directions alike; `momentum` 0.9, as is usual; `threshold` 0.02, since an
    embedding that moves by 0.2 of its length (the threshold of TTC) sideways has a cosine of about 1 - 0.02;
    `sharpness` 200, so that w goes from 0.98 to 0.02 between tau = 0 and tau = 0.04. Decided: noise is uniform, as in
    the algorithm (the text has random signs), and stable images are moved, as in the equation (the text says the
    opposite).

    Attributes:
        eps: in units of 1/255, how far the image may be moved.
        steps: of the counterattack.
        step_size: in units of 1/255.
        copies: noisy images for the gate.
        orthogonality: how much the random direction counts.
        momentum: how much of the last direction stays.
        threshold: of tau, where w is one half.
        sharpness: of the gate.
    """

    name: ClassVar[str] = "doc"
    summary: ClassVar[str] = "counterattack in pixels with orthogonal noise and a soft gate (2026)"
    citation: ClassVar[str] = (
        "Diversifying Counterattacks: Orthogonal Exploration for Robust CLIP Inference. AAAI 2026. arXiv:2511.09064"
    )
    random: ClassVar[bool] = True
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "surrogate")
    gated: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    eps: float = 4
    steps: int = 4
    step_size: float = 3
    copies: int = 5
    orthogonality: float = 1
    momentum: float = 0.9
    threshold: float = 0.02
    sharpness: float = 200

    def __post_init__(self) -> None:
        at_least(self, eps=0, steps=1, step_size=0, copies=1, orthogonality=0, momentum=0, threshold=0)
        above(self, sharpness=0)
        below(self, momentum=1)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return self.copies + self.steps + 2, self.steps

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return self._mixed(classifier, x, view, smooth=False)

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """Steps with a smooth sign, whose own derivative is zero; the gate as it is."""
        with twice():
            return self._mixed(classifier, x, view, smooth=True)

    def flagged(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """Those that are moved more than they are left to noise."""
        with torch.no_grad():
            here = classifier.embed(x, view, normalize=False).float()
            return self._instability(classifier, x, view, here, view.draws.rows(x)) < self.threshold

    def relaxations(self) -> tuple[str, ...]:
        return ("both branches", "soft gate") if self.threshold else ("both branches",)

    def relaxed(self, name: str, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """The mean over both ends of the gate, as an image that fools both need not care for tau; or both by how far
        tau is from the threshold, with a gate less sharp than the defence's own.
        """
        clean, draws, both = x.detach(), view.draws.rows(x), name == "both branches"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not both):
            here = classifier.embed(x, view, normalize=False).float()
            tau = self._instability(classifier, x, view, here, draws)  # takes its noise before the others do
        ends = self._ends(classifier, clean, view, here.detach(), draws, smooth=False)
        sides = [classifier.logits(with_gradient_of(clean + end, x), view) for end in ends]
        if both:
            return torch.stack(sides).mean(dim=0)
        return soft_gate(sides[0], sides[1], GATE_SLOPE * (tau / self.threshold - 1))

    def _mixed(self, classifier: Classifier, x: Tensor, view: View, *, smooth: bool) -> Tensor:
        draws = view.draws.rows(x)
        with torch.set_grad_enabled(smooth):
            here = classifier.embed(x, view, normalize=False).float()
            tau = self._instability(classifier, x, view, here, draws)
        weight = torch.sigmoid(self.sharpness * (self.threshold - tau))[:, None, None, None]
        start, end = self._ends(classifier, x, view, here, draws, smooth=smooth)
        return x + weight * end + (1 - weight) * start

    def _instability(self, classifier: Classifier, x: Tensor, view: View, here: Tensor, draws: RowDraws) -> Tensor:
        """tau (B,)."""
        cosines = []
        for _ in range(self.copies):
            features = classifier.embed(x + self._noise(x, draws), view, normalize=False).float()
            cosines.append(F.cosine_similarity(features, here, dim=1))
        return 1 - torch.stack(cosines).mean(dim=0)

    def _ends(
        self, classifier: Classifier, x: Tensor, view: View, here: Tensor, draws: RowDraws, *, smooth: bool
    ) -> tuple[Tensor, Tensor]:
        """delta_0 and delta_T; differentiable in x if they are smooth."""

        def moved(point: Tensor) -> Tensor:  # squared: its gradient has the same direction, and always one
            return (classifier.embed(point, view, normalize=False).float() - here).square().sum(dim=1)

        start = self._noise(x, draws)
        delta, mean = start, torch.zeros_like(x)
        for _ in range(self.steps):
            point = x + delta
            along = _unit(live_gradient(moved, point) if smooth else gradient(moved, point))
            noise = draws.normal(*x.shape[1:])
            across = _unit(noise - (noise * along).flatten(1).sum(dim=1)[:, None, None, None] * along)
            mean = self.momentum * mean + (1 - self.momentum) * (along + self.orthogonality * across)
            step = soft_sign(mean) if smooth else mean.sign()
            delta = self._limited(delta + self.step_size / PIXEL * step, x)
        return start, delta

    def _noise(self, x: Tensor, draws: RowDraws) -> Tensor:
        return self._limited((2 * draws.uniform(*x.shape[1:]) - 1) * self.eps / PIXEL, x)

    def _limited(self, delta: Tensor, x: Tensor) -> Tensor:
        """Within eps, and the image within [0,1]."""
        limit = self.eps / PIXEL
        return (x + delta.clamp(-limit, limit)).clamp(0, 1) - x


def _unit(x: Tensor) -> Tensor:
    """Of l2 length 1, by image."""
    return F.normalize(x.flatten(1), dim=1).view_as(x)
