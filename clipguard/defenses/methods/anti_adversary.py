"""The anti-adversary layer (Alfarra et al., AAAI 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.defenses.base import Backward, Classifier, Purifier, View
from clipguard.defenses.gradients import gradient, live_gradient, soft_sign, twice
from clipguard.defenses.options import at_least

TYPICAL_STD = 0.25  # of a colour, where the normalisation is not known: about ImageNet's


@dataclass(frozen=True)
class AntiAdversary(Purifier):
    """Moves an image toward more confidence in the class that it is given (the authors' Anti_Adv.py).

    y = argmax f(x), delta_0 = 0, and `k` times delta <- delta - step_size sign(gradient of CE(f(x + delta), y)).

    Decided here: the authors' layer stands behind the normalisation, where the step is 0.15 (as in their published
    run; their class has k = 0 and step 1). A defence here sees pixels, so a step is `step_size` standard deviations of
    the classifier's normalisation, by colour, and of 1/4 where that is not known. As there, nothing bounds delta and
    nothing keeps the pixels within [0,1]: a defence after it in a chain meets values a little outside.

    Attributes:
        k: steps.
        step_size: in normalised units.
    """

    name: ClassVar[str] = "anti-adversary"
    summary: ClassVar[str] = "steps toward confidence in the predicted class (Alfarra et al. 2022)"
    citation: ClassVar[str] = (
        "Alfarra, Perez, Thabet, Bibi, Torr and Ghanem. Combating Adversaries with Anti-Adversaries. AAAI 2022. "
        "arXiv:2103.14347"
    )
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "surrogate")
    k: int = 2
    step_size: float = 0.15

    def __post_init__(self) -> None:
        at_least(self, k=1, step_size=0)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return self.k + 2, self.k

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return self._moved(classifier, x, view, smooth=False)

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """Steps with a smooth sign: the derivative of the sign itself is zero."""
        with twice():
            return self._moved(classifier, x, view, smooth=True)

    def _moved(self, classifier: Classifier, x: Tensor, view: View, *, smooth: bool) -> Tensor:
        with torch.no_grad():
            predicted = classifier.logits(x, view).argmax(dim=1)

        def loss(point: Tensor) -> Tensor:
            return F.cross_entropy(classifier.logits(point, view), predicted, reduction="none")

        std = x.new_tensor(classifier.std or (TYPICAL_STD,) * 3).view(1, 3, 1, 1)
        for _ in range(self.k):
            step = soft_sign(live_gradient(loss, x)) if smooth else gradient(loss, x).sign()
            x = x - self.step_size * std * step
        return x
