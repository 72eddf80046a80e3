"""How cells are decided: tests for a number of images fixed beforehand, and tests that hold after every image."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from clipguard.statistics.anytime import Outcomes, adjusted_p_values, confidence_sequence, log_e_value
from clipguard.statistics.paired import Pairs, harmless_p_value, holm, paired_interval, regression_p_value

MOST_IMAGES = 10**7  # beyond this, no number of images is named


@dataclass(frozen=True)
class Seen:
    """What both models did on the same images: `pairs` of each data set, accuracies averaged over them.

    changes: (n,), in the order in which the images were taken: 1 gained, -1 lost, 0 else; averaged over data sets, as
    many as the smallest has.
    """

    dataset: str
    norm: str
    attack: str
    eps: float
    pairs: tuple[Pairs, ...]
    base: float
    candidate: float
    changes: Outcomes

    @property
    def n(self) -> int:
        """Images, of all data sets."""
        return sum(pairs.n for pairs in self.pairs)


class Tests(Protocol):
    """Tests of "the drop is `allowed` (a fraction) at most", and of "it is that or more"."""

    def regression(self, seen: Seen, allowed: float) -> float:
        """P-value that is small after a regression, of one cell on its own."""

    def regressions(self, cells: Sequence[Seen], allowed: float) -> list[float]:
        """The same, adjusted for testing all cells."""

    def harmless(self, seen: Seen, allowed: float) -> float:
        """P-value that is small where the drop is less than allowed."""

    def interval(self, seen: Seen) -> tuple[float, float]:
        """95 % limits of the change."""

    def images(self, seen: Seen, allowed: float, alpha: float, cells: int) -> float:
        """Images, in all, at which this undecided cell would be decided if the rates seen are the true ones, or inf."""


class FixedTests:
    """For a number of images that was fixed beforehand: exact McNemar and score tests, Holm, Tango's intervals."""

    def regression(self, seen: Seen, allowed: float) -> float:
        """The larger of two (statistics.regression_p_value)."""
        return regression_p_value(seen.pairs, allowed)

    def regressions(self, cells: Sequence[Seen], allowed: float) -> list[float]:
        """Holm's."""
        return holm([self.regression(seen, allowed) for seen in cells])

    def harmless(self, seen: Seen, allowed: float) -> float:
        """The test of non-inferiority."""
        return harmless_p_value(seen.pairs, allowed)

    def interval(self, seen: Seen) -> tuple[float, float]:
        """Tango's."""
        return paired_interval(seen.pairs)

    def images(self, seen: Seen, allowed: float, alpha: float, cells: int) -> float:
        """A score grows with the square root of the number of images."""
        p, level = self.harmless(seen, allowed), alpha
        if p > 0.5:  # it fell by more than is allowed
            p, level = self.regression(seen, allowed), alpha / cells
        score = float(norm.isf(p))
        return seen.n * float(norm.isf(level) / score) ** 2 if score > 0 else math.inf


class AnytimeTests:
    """For images taken in random order, whenever one looks and stops: betting, its e-values as p-values 1 / e."""

    def regression(self, seen: Seen, allowed: float) -> float:
        """1 / e, at most 1."""
        return math.exp(-max(0.0, log_e_value(-seen.changes, allowed)))

    def regressions(self, cells: Sequence[Seen], allowed: float) -> list[float]:
        """By averages of e-values."""
        return adjusted_p_values([log_e_value(-seen.changes, allowed) for seen in cells])

    def harmless(self, seen: Seen, allowed: float) -> float:
        """1 / e, at most 1."""
        return math.exp(-max(0.0, log_e_value(seen.changes, -allowed)))

    def interval(self, seen: Seen) -> tuple[float, float]:
        """The confidence sequence."""
        return confidence_sequence(seen.changes)

    def images(self, seen: Seen, allowed: float, alpha: float, cells: int) -> float:
        """Where the larger of both e-values reaches its threshold."""

        def above(times: float) -> float:
            lost = log_e_value(-seen.changes, allowed, times) - math.log(cells / alpha)
            return max(lost, log_e_value(seen.changes, -allowed, times) + math.log(alpha))

        most = max(1.0, MOST_IMAGES / seen.n)
        if above(most) <= 0:
            return math.inf
        return seen.n * (float(brentq(above, 1.0, most)) if above(1.0) < 0 else 1.0)  # 1: rounding, at the threshold


def n_to_decide(tests: Tests, seen: Seen, allowed: float, alpha: float, cells: int) -> int | None:
    """Images, in all, at which the rates seen here would decide.

    None if they would not with 10 million: then the drop is close to `allowed`.
    """
    n = tests.images(seen, allowed, alpha, cells)
    return math.ceil(n) if n < MOST_IMAGES else None


def detectable_drop(tests: Tests, seen: Seen, allowed: float, alpha: float, cells: int) -> float | None:
    """The smallest drop that would be a regression with these images, and as many gained: if no other cell changed.

    None for averages, and where losing every image that the base had right would not be enough.
    """
    if len(seen.pairs) > 1:
        return None
    n, gained, right = seen.n, seen.pairs[0].gained, round(seen.base * seen.n)

    def shows(lost: int) -> bool:
        changes = np.repeat([-1.0, 1.0, 0.0], [lost, gained, n - lost - gained])
        other = replace(seen, pairs=(Pairs(n, lost, gained),), changes=changes)
        return tests.regression(other, allowed) <= alpha / cells

    lost = bisect_left(range(right + 1), True, key=shows)
    return (lost - gained) / n if lost <= right else None
