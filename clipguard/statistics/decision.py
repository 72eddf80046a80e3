"""How cells of a comparison are decided: tests for a number of images fixed beforehand, and after every image."""

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
from clipguard.statistics.paired import Pairs, holm, noninferiority_p_value, paired_interval, regression_p_value

MAX_IMAGES = 10**7  # beyond this, no number of images is named


@dataclass(frozen=True)
class PairedCell:
    """A cell of two models on the same images; or the average of a cell over data sets."""

    dataset: str
    norm: str
    attack: str
    eps: float
    pairs: tuple[Pairs, ...]  # of each data set
    base: float  # accuracy, a fraction, averaged over data sets
    candidate: float
    changes: Outcomes
    """(n,) in the order in which the images were taken: 1 gained, -1 lost, 0 else; averaged over data sets, as many as
    the smallest has."""

    @property
    def n(self) -> int:
        """Images, of all data sets."""
        return sum(pairs.n for pairs in self.pairs)


class Tests(Protocol):
    """Tests of "the drop is `allowed` at most", and of "it is that or more"; `allowed` is a fraction in [0, 1)."""

    def regression(self, cell: PairedCell, allowed: float) -> float:
        """P-value that is small after a regression, of one cell on its own."""

    def regressions(self, cells: Sequence[PairedCell], allowed: float) -> list[float]:
        """The same, adjusted for testing all cells."""

    def noninferiority(self, cell: PairedCell, allowed: float) -> float:
        """P-value that is small where the drop is less than allowed."""

    def interval(self, cell: PairedCell) -> tuple[float, float]:
        """95 % limits of the change, fractions."""

    def images(self, cell: PairedCell, allowed: float, alpha: float, n_cells: int) -> float:
        """Images, in all, at which this undecided cell would be decided if the rates seen are the true ones, or inf.

        Args:
            cell: what was seen.
            allowed: see above.
            alpha: the error that is allowed, of all cells together.
            n_cells: how many are tested.
        """


class FixedTests:
    """For a number of images that was fixed beforehand: exact McNemar and score tests, Holm, Tango's intervals."""

    def regression(self, cell: PairedCell, allowed: float) -> float:
        """See `regression_p_value`."""
        return regression_p_value(cell.pairs, allowed)

    def regressions(self, cells: Sequence[PairedCell], allowed: float) -> list[float]:
        """See `holm`."""
        return holm([self.regression(cell, allowed) for cell in cells])

    def noninferiority(self, cell: PairedCell, allowed: float) -> float:
        """See `noninferiority_p_value`."""
        return noninferiority_p_value(cell.pairs, allowed)

    def interval(self, cell: PairedCell) -> tuple[float, float]:
        """See `paired_interval`."""
        return paired_interval(cell.pairs)

    def images(self, cell: PairedCell, allowed: float, alpha: float, n_cells: int) -> float:
        """A score grows with the square root of the number of images."""
        p, level = self.noninferiority(cell, allowed), alpha
        if p > 0.5:  # it fell by more than is allowed
            p, level = self.regression(cell, allowed), alpha / n_cells
        score = float(norm.isf(p))
        return cell.n * float(norm.isf(level) / score) ** 2 if score > 0 else math.inf


class AnytimeTests:
    """For images taken in random order, whenever one looks and stops: betting, its e-values as p-values 1 / e."""

    def regression(self, cell: PairedCell, allowed: float) -> float:
        """1 / e, at most 1."""
        return math.exp(-max(0.0, log_e_value(-cell.changes, allowed)))

    def regressions(self, cells: Sequence[PairedCell], allowed: float) -> list[float]:
        """See `adjusted_p_values`."""
        return adjusted_p_values([log_e_value(-cell.changes, allowed) for cell in cells])

    def noninferiority(self, cell: PairedCell, allowed: float) -> float:
        """1 / e, at most 1."""
        return math.exp(-max(0.0, log_e_value(cell.changes, -allowed)))

    def interval(self, cell: PairedCell) -> tuple[float, float]:
        """See `confidence_sequence`."""
        return confidence_sequence(cell.changes)

    def images(self, cell: PairedCell, allowed: float, alpha: float, n_cells: int) -> float:
        """Where the larger of both e-values reaches its threshold."""

        def above(times: float) -> float:
            lost = log_e_value(-cell.changes, allowed, times) - math.log(n_cells / alpha)
            return max(lost, log_e_value(cell.changes, -allowed, times) + math.log(alpha))

        most = max(1.0, MAX_IMAGES / cell.n)
        if above(most) <= 0:
            return math.inf
        return cell.n * (float(brentq(above, 1.0, most)) if above(1.0) < 0 else 1.0)  # 1: rounding, at the threshold


def n_to_decide(tests: Tests, cell: PairedCell, allowed: float, alpha: float, n_cells: int) -> int | None:
    """Images, in all, at which the rates seen here would decide; arguments as for `Tests.images`.

    Returns:
        Their number, or None if they would not with `MAX_IMAGES`: then the drop is close to `allowed`.
    """
    n = tests.images(cell, allowed, alpha, n_cells)
    return math.ceil(n) if n < MAX_IMAGES else None


def detectable_drop(tests: Tests, cell: PairedCell, allowed: float, alpha: float, n_cells: int) -> float | None:
    """The smallest drop that would be a regression with these images, and as many gained: if no other cell changed.

    Returns:
        A fraction, or None for averages, and where losing every image that the base had right would not be enough.
    """
    if len(cell.pairs) > 1:
        return None
    n, gained, right = cell.n, cell.pairs[0].gained, round(cell.base * cell.n)

    def shows(lost: int) -> bool:
        changes = np.repeat([-1.0, 1.0, 0.0], [lost, gained, n - lost - gained])
        other = replace(cell, pairs=(Pairs(n, lost, gained),), changes=changes)
        return tests.regression(other, allowed) <= alpha / n_cells

    lost = bisect_left(range(right + 1), True, key=shows)
    return (lost - gained) / n if lost <= right else None
