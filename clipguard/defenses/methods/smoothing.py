"""Randomised smoothing (Cohen et al., ICML 2019), as a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.defenses.base import Backward, Classifier, Defense, View, with_gradient_of
from clipguard.defenses.copies import outputs_of_copies
from clipguard.defenses.options import above, at_least


@dataclass(frozen=True)
class Smoothing(Defense):
    """The class that most of many noisy copies of the image are given (equation 1, by Monte Carlo).

    Noise is N(0, sigma^2) for every value of [0,1], and nothing is clamped after it. Logits are the logarithms of the
    shares of votes, log((n_c + 1) / (samples + classes)): one vote more for each class makes them finite, half a vote
    more for the leader, the first of equals, makes it the only one.

    Its gradient is that of the soft vote, the logarithm of the mean of the copies' probabilities (SmoothAdv, Salman et
    al. 2019), with the same noise: the count itself has none.

    Decided here: a class is always given; the authors' PREDICT abstains where the votes do not suffice, and 100 votes
    are theirs for choosing the class that is then certified.

    Attributes:
        sigma: of the noise, in [0,1] pixels.
        samples: noisy copies.
    """

    name: ClassVar[str] = "smoothing"
    summary: ClassVar[str] = "majority vote over Gaussian noise (Cohen et al. 2019)"
    citation: ClassVar[str] = (
        "Cohen, Rosenfeld and Kolter. Certified Adversarial Robustness via Randomized Smoothing. ICML 2019. "
        "arXiv:1902.02918"
    )
    random: ClassVar[bool] = True
    backwards: ClassVar[tuple[Backward, ...]] = ("surrogate",)
    sigma: float = 0.25
    samples: int = 100

    def __post_init__(self) -> None:
        above(self, sigma=0)
        at_least(self, samples=1)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return self.samples, 0

    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        outputs = self._outputs(classifier, x, view)
        first = next(outputs)
        votes, soft = _vote(first), first.log_softmax(dim=1)
        for out in outputs:
            votes, soft = votes + _vote(out), torch.logaddexp(soft, out.log_softmax(dim=1))
        shares = _log_shares(votes) + 0 * soft.detach().sum(dim=1, keepdim=True)  # NaN stays NaN
        return with_gradient_of(shares, soft) if soft.requires_grad else shares

    def relaxations(self) -> tuple[str, ...]:
        return ("soft votes",)

    def relaxed(self, name: str, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        """The logarithm of the mean softmax: unlike shares of votes it changes with every step of an attack."""
        soft = [out.log_softmax(dim=1) for out in self._outputs(classifier, x, view)]
        return torch.stack(soft).logsumexp(dim=0) - math.log(self.samples)

    def _outputs(self, classifier: Classifier, x: Tensor, view: View) -> Iterator[Tensor]:
        """Logits (B, classes) of each noisy copy."""
        draws = view.draws.rows(x)

        def copy(images: Tensor, number: int) -> Tensor:
            return images + self.sigma * draws.part(number).normal(*images.shape[1:])

        return outputs_of_copies(classifier.logits, x, view, self.samples, copy, least_rows=classifier.least_rows)


def _vote(logits: Tensor) -> Tensor:
    return F.one_hot(logits.nan_to_num().argmax(dim=1), logits.shape[1])


def _log_shares(votes: Tensor) -> Tensor:
    """Finite logarithms of the shares of votes (B, classes), with one leader."""
    classes = votes.shape[1]
    numbers = torch.arange(classes, device=votes.device)
    leader = numbers.where(votes == votes.amax(dim=1, keepdim=True), classes).amin(dim=1)
    counts = votes.float() + 1 + F.one_hot(leader, classes) / 2
    return (counts / (votes.sum(dim=1, keepdim=True) + classes)).log()
