"""Confidence intervals of accuracies: of one proportion, on either side or below, and of an average over data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom, binomtest, norm


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, J. Am. Stat. Assoc. 1927).

    Args:
        successes: how many of `n`, in [0, n].
        n: at least 1.
        confidence: the share of such intervals that hold the true proportion, in (0, 1).

    Returns:
        Its limits, fractions in [0, 1].

    Raises:
        ValueError: unless 0 <= successes <= n and n >= 1.
    """
    if not 0 <= successes <= n or n < 1:  # scipy does not always say so
        raise ValueError(f"{successes} of {n} is not a proportion.")
    interval = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def lower_bound(successes: int, n: int, alpha: float) -> float:
    """The exact one-sided lower limit of a proportion (Clopper and Pearson, Biometrika 1934).

    Args:
        successes: how many of `n`, in [0, n].
        n: at least 1.
        alpha: how often, at most, the true proportion is below the limit, in (0, 1).

    Returns:
        The alpha quantile of Beta(successes, n - successes + 1), in [0, 1); 0 without successes.

    Raises:
        ValueError: unless 0 <= successes <= n and n >= 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a proportion.")
    return float(beta.ppf(alpha, successes, n - successes + 1)) if successes else 0.0


def fewest_of_majority(n: int, alpha: float) -> int:
    """The fewest successes of `n` whose `lower_bound` is above 1/2; n + 1 if n are not enough.

    It is the least k with P(Binomial(n, 1/2) >= k) < alpha.
    """
    fewest = max(0, int(binom.isf(alpha, n, 0.5)))
    while binom.sf(fewest - 1, n, 0.5) >= alpha:
        fewest += 1
    return fewest


def average_interval(estimates: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Unweighted average of independent estimates, with an interval of their confidence.

    MOVER (Zou and Donner, Statistics in Medicine 2008, eq. 3): the distances to the limits add up in quadrature.

    Args:
        estimates: each (value, low, high).

    Returns:
        The average's (value, low, high).

    Raises:
        ValueError: if there is none.
    """
    if not estimates:
        raise ValueError("There is nothing to average.")
    k = len(estimates)
    mean = sum(value for value, _, _ in estimates) / k
    below = math.hypot(*(value - low for value, low, _ in estimates)) / k
    above = math.hypot(*(high - value for value, _, high in estimates)) / k
    return mean, mean - below, mean + above


def percent_with_interval(accuracy: float, low: float, high: float) -> str:
    """`61.0 (54.7–67.0)`: fractions of 1 in percent."""
    return f"{100 * accuracy:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def interval_of_votes(margins: npt.NDArray[np.float64], votes: int, confidence: float = 0.95) -> float:
    """By how much an accuracy by majority may change if all votes are cast again, for the same images.

    A margin m between the shares of two classes stands for (1 + m) / 2 of the votes; the chance of a vote is estimated
    as (k + 1/2) / (votes + 1), that of the majority is binomial, and images vote independently (normal approximation).

    Args:
        margins: (N,) of the true class, share of votes less that of the best other class, in [-1, 1].
        votes: cast for each image, odd.
        confidence: in (0, 1).

    Returns:
        Half the width of the interval, a fraction in [0, 1].
    """
    chance = ((1 + margins) / 2 * votes + 0.5) / (votes + 1)
    right = binom.sf(votes // 2, votes, chance)
    deviation = math.sqrt(float((right * (1 - right)).sum())) / len(margins)
    return float(norm.ppf(0.5 + confidence / 2)) * deviation
