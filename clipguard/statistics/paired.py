"""Tests and intervals of paired outcomes: the same images, two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import binomtest, norm

BOUNDARY_GAP = 1e-9  # limits are sought in [-1 + gap, 1 - gap]: at the ends the score has no variance
ROUNDING = 1e-9  # images: a difference of counts that is smaller is none
MAX_SCORE = 40.0  # standard errors: beyond, the p-value is 0 in float64


@dataclass(frozen=True)
class Pairs:
    """The same `n` images before and after: `lost` were right and are wrong now, `gained` the other way round.

    Raises:
        ValueError: unless lost, gained >= 0, n >= 1 and lost + gained <= n.
    """

    n: int
    lost: int
    gained: int

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.n < 1 or min(self.lost, self.gained) < 0 or self.lost + self.gained > self.n:
            raise ValueError(f"Impossible counts: {self}.")

    @property
    def change(self) -> float:
        """Accuracy after minus accuracy before, in [-1, 1]."""
        return (self.gained - self.lost) / self.n


def mcnemar_p_value(lost: int, gained: int) -> float:
    """Two-sided exact p-value of "accuracy did not change" (McNemar, Psychometrika 1947; exact as in Fay, 2010).

    Given that an image changed, it is lost or gained with the same probability: lost is Binomial(lost + gained, 1/2).
    """
    return _sign_test(lost, gained, "two-sided")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for testing all of them (Holm, Scandinavian Journal of Statistics 1979).

    Rejecting those at most alpha makes a false rejection anywhere at most alpha likely, however the tests depend on
    one another. The k-th smallest of m becomes the largest of min(1, (m - j + 1) p_(j)) over j <= k.

    Args:
        p_values: of m tests, each in [0, 1].

    Returns:
        The adjusted ones, in the same order.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def paired_interval(sets: Sequence[Pairs], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the change in accuracy, averaged over data sets with equal weights; within [-1, 1].

    For one data set: Tango's score interval (Statistics in Medicine 1998). For several, their limits combined by
    MOVER (Zou and Donner, Statistics in Medicine 2008, eq. 3), which does not suppose that all changed alike.

    Args:
        sets: the images of each data set.
        confidence: the share of such intervals that hold the true change, in (0, 1).

    Returns:
        The limits of accuracy after minus accuracy before, fractions.
    """
    return _limits(sets, float(norm.ppf((1 + confidence) / 2)))


def regression_p_value(sets: Sequence[Pairs], allowed: float) -> float:
    """One-sided p-value against "accuracy fell by `allowed` at most": small after a regression.

    The larger of two, so that neither of these is called a regression more often than alpha says: no change at all
    (exact McNemar test, over all images of all sets), and a drop of `allowed` (score test, whose inversion is
    `paired_interval`; alpha holds for large n and can be 0.07 instead of 0.05 for small).

    Args:
        sets: the images of each data set, which weigh the same.
        allowed: the drop that is none yet, a fraction in [0, 1).
    """
    chance = _sign_test(sum(s.lost for s in sets), sum(s.gained for s in sets), "greater")
    return max(chance, float(norm.cdf(change_score(sets, -allowed))))


def noninferiority_p_value(sets: Sequence[Pairs], allowed: float) -> float:
    """One-sided p-value against "accuracy fell by `allowed` or more": small where the drop is less.

    The score test of non-inferiority (Nam, Biometrics 1997; Tango, Statistics in Medicine 1998).

    Args:
        sets: the images of each data set, which weigh the same.
        allowed: the drop that would matter, a fraction in [0, 1).
    """
    return float(norm.sf(change_score(sets, -allowed)))


def change_score(sets: Sequence[Pairs], change: float) -> float:
    """By how many standard errors the average change is above `change`, in [-MAX_SCORE, MAX_SCORE].

    `paired_interval` holds the changes whose score is between -1.96 and 1.96.

    Args:
        sets: the images of each data set, which weigh the same.
        change: of accuracy, a fraction in (-1, 1).
    """
    if len(sets) == 1:
        return _tango(sets[0], change)
    mean = _mean(sets)
    if math.isclose(mean, change, abs_tol=1e-12):
        return 0.0
    side, sign = (0, 1.0) if mean > change else (1, -1.0)

    def beyond(z: float) -> float:
        return sign * (_limits(sets, z)[side] - change)

    return sign * (MAX_SCORE if beyond(MAX_SCORE) > 0 else float(brentq(beyond, 0.0, MAX_SCORE)))


def _sign_test(lost: int, gained: int, alternative: str) -> float:
    return float(binomtest(lost, lost + gained, alternative=alternative).pvalue) if lost + gained else 1.0


def _mean(sets: Sequence[Pairs]) -> float:
    return sum(s.change for s in sets) / len(sets)


def _limits(sets: Sequence[Pairs], z: float) -> tuple[float, float]:
    """MOVER (Zou and Donner 2008, eq. 3) with equal weights, at `z` standard errors; for one set its own limits."""
    limits = [_tango_limits(s, z) for s in sets]
    below = math.hypot(*(s.change - low for s, (low, _) in zip(sets, limits, strict=True)))
    above = math.hypot(*(high - s.change for s, (_, high) in zip(sets, limits, strict=True)))
    return _mean(sets) - below / len(sets), _mean(sets) + above / len(sets)


def _tango_limits(pairs: Pairs, z: float) -> tuple[float, float]:
    """The changes whose score is z and -z; -1 and 1 where no change has that."""
    low, high = -1 + BOUNDARY_GAP, 1 - BOUNDARY_GAP

    def root(target: float, start: float, end: float) -> float:
        return float(brentq(lambda change: _tango(pairs, change) - target, start, end, xtol=1e-12))

    at = min(max(pairs.change, low), high)
    below = -1.0 if _tango(pairs, low) <= z else root(z, low, at)
    above = 1.0 if _tango(pairs, high) >= -z else root(-z, at, high)
    return below, above


def _tango(pairs: Pairs, change: float) -> float:
    """Tango's (1998) score: (estimate - change) / its standard error where `change` is the truth.

    With b = gained, c = lost and d = change, the probability of a loss under that restriction is the larger root q of
    2n q^2 + (d(2n - b + c) - b - c) q - c d(1 - d) = 0, and n times the variance of the estimate is 2q + d(1 - d).
    """
    n, b, c, d = pairs.n, pairs.gained, pairs.lost, change
    above = b - c - n * d
    if abs(above) < ROUNDING:
        return 0.0
    linear = d * (2 * n - b + c) - b - c
    q = (math.sqrt(linear**2 + 8 * n * c * d * (1 - d)) - linear) / (4 * n)
    score = above / math.sqrt(n * (2 * q + d * (1 - d)))
    return max(-MAX_SCORE, min(MAX_SCORE, score))
