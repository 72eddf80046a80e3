"""Confidence intervals of accuracies: of one proportion, and of an average over data sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import binomtest


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
