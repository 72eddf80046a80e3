"""Contrastive spectral rectification (Nie et al., ICML 2026)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clipguard.core.eps import PIXEL
from clipguard.defenses.base import Backward, Classifier, Purifier, View, with_gradient_of
from clipguard.defenses.gradients import GATE_SLOPE, gradient, live_gradient, soft_gate, soft_sign, twice
from clipguard.defenses.options import above, at_least

Filter = Literal["gaussian", "butterworth", "ideal"]
PUBLISHED_SIDE = 224  # of the images for which the radius is given


@dataclass(frozen=True)
class CSR(Purifier):
    """Moves an image whose embedding a low pass changes much toward the embedding of the low-passed one (the authors'
    csr/defense/csr.py).

    LP keeps low frequencies: with d the distance from frequency 0, the factor is exp(-d^2 / (2 radius^2)), or
    1 / (1 + (d / radius)^4), or 1 for d <= radius. An image is taken for attacked if cos(f(x), f(LP x)) < `threshold`.
    Then `steps` signed steps, within `eps` of x and within [0,1], raise cos(f(x'), f(LP x)) - repulsion cos(f(x'),
    f(x)), and the best of x and of all that follow it is taken.

    Decided here: the authors have two codes under one name; this is the one that scores the last step as well (their
    fast one makes one step less). An image that passes is classified as it is. d is in cycles across an image of 224
    pixels, so a filter cuts at the same cycles per pixel at any size; it acts at the size of the images that come in.
    In their code the gradient of a moved image is zero, which no attack can use: here it is the identity, or that of
    steps with a smooth sign (which iterate was the best is then fixed).

    Attributes:
        low_pass: gaussian, butterworth or ideal.
        radius: of the filter, for images of 224 pixels.
        threshold: of the cosine.
        eps: in units of 1/255, how far an image may be moved.
        steps: of the move.
        step_size: in units of 1/255.
        repulsion: weight of the distance from the embedding that it had.
    """

    name: ClassVar[str] = "csr"
    summary: ClassVar[str] = "low-pass gate, and a move toward the low-passed image (Nie et al. 2026)"
    citation: ClassVar[str] = (
        "Nie, Zhang, Wang, Shan and Chen. Contrastive Spectral Rectification: Test-Time Defense towards Zero-shot "
        "Adversarial Robustness of CLIP. ICML 2026. arXiv:2601.19210"
    )
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "surrogate")
    gated: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    low_pass: Filter = "gaussian"
    radius: float = 40
    threshold: float = 0.85
    eps: float = 4
    steps: int = 3
    step_size: float = 2
    repulsion: float = 1

    def __post_init__(self) -> None:
        above(self, radius=0)
        at_least(self, threshold=-1, eps=0, steps=1, step_size=0, repulsion=0)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return self.steps + 4, self.steps

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        with torch.no_grad():
            here, there = self._embeddings(classifier, x, view)
        flagged = self._far(here, there)
        if not flagged.any():
            return x
        moved = self._moved(classifier, x, view, here, there, smooth=False)
        return torch.where(flagged[:, None, None, None], moved, x)

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """Steps with a smooth sign: the derivative of the sign itself is zero. That of the gate is left out."""
        with twice():
            here, there = self._embeddings(classifier, x, view)
            moved = self._moved(classifier, x, view, here, there, smooth=True)
            return torch.where(self._far(here, there)[:, None, None, None], moved, x)

    def flagged(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        with torch.no_grad():
            return self._far(*self._embeddings(classifier, x, view))

    def relaxations(self) -> tuple[str, ...]:
        return ("both branches", "soft gate") if self.threshold < 1 else ("both branches",)

    def relaxed(self, name: str, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """The mean over the image and the low-passed one: where both are taken for the same wrong class their
        embeddings are alike, so the gate stays shut, and what an image is moved toward is wrong, too. Or the image and
        the moved one by how far the cosine is from the threshold, which leads to images that pass and are wrong.
        """
        if name == "both branches":
            return torch.stack([classifier.logits(image, view) for image in (x, self.smoothed(x))]).mean(dim=0)
        here, there = self._embeddings(classifier, x, view)
        moved = self._moved(classifier, x.detach(), view, here.detach(), there.detach(), smooth=False)
        sides = [classifier.logits(image, view) for image in (x, with_gradient_of(moved, x))]
        return soft_gate(sides[0], sides[1], GATE_SLOPE * (1 - (1 - (here * there).sum(dim=1)) / (1 - self.threshold)))

    def smoothed(self, x: Tensor) -> Tensor:
        """LP x: images (B, 3, H, W) without their high frequencies, within [0,1]."""
        height, width = x.shape[-2:]
        factors = self._factors(height, width).to(x)
        low: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * factors, s=(height, width))
        return low.clamp(0, 1)

    def _factors(self, height: int, width: int) -> Tensor:
        """(H, W // 2 + 1), of each frequency that a real image has."""
        rows = (torch.arange(height, dtype=torch.float64) + height // 2) % height - height // 2
        columns = torch.arange(width // 2 + 1, dtype=torch.float64)
        down, across = rows * (PUBLISHED_SIDE / height), columns * (PUBLISHED_SIDE / width)
        squared = (down.square()[:, None] + across.square()) / self.radius**2
        if self.low_pass == "gaussian":
            return torch.exp(-squared / 2)
        return 1 / (1 + squared.square()) if self.low_pass == "butterworth" else (squared <= 1).double()

    def _embeddings(self, classifier: Classifier, x: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """f(x) and f(LP x), unit rows."""
        return classifier.embed(x, view).float(), classifier.embed(self.smoothed(x), view).float()

    def _far(self, here: Tensor, there: Tensor) -> Tensor:
        return (here * there).sum(dim=1) < self.threshold

    def _moved(
        self, classifier: Classifier, x: Tensor, view: View, here: Tensor, there: Tensor, *, smooth: bool
    ) -> Tensor:
        """The best of all iterates; differentiable in x if it is smooth."""
        scores = list[Tensor]()

        def score(point: Tensor) -> Tensor:
            features = classifier.embed(point, view).float()
            values = (features * there).sum(dim=1) - self.repulsion * (features * here).sum(dim=1)
            scores.append(values.detach())
            return values

        limit, points = self.eps / PIXEL, [x.clone()]  # not x itself, on which `here` and `there` depend
        for _ in range(self.steps):
            step = soft_sign(live_gradient(score, points[-1])) if smooth else gradient(score, points[-1]).sign()
            delta = (points[-1] + self.step_size / PIXEL * step - x).clamp(-limit, limit)
            points.append((x + delta).clamp(0, 1))
        with torch.no_grad():
            score(points[-1])
        return _best(points, scores)


def _best(points: list[Tensor], scores: list[Tensor]) -> Tensor:
    """By image, the first of the points (B, 3, H, W) with the highest score (B,)."""
    best, top = points[0], torch.full_like(scores[0], -math.inf)
    for point, score in zip(points, scores, strict=True):
        best = torch.where((score > top)[:, None, None, None], point, best)
        top = torch.maximum(top, score)
    return best
