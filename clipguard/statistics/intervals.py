"""Intervals for accuracies, and tests of a change in accuracy on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import binomtest


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, as fractions in [0, 1] (Wilson, JASA 1927).

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if not 0 <= successes <= n or n < 1:  # scipy does not always say so
        raise ValueError(f"{successes} of {n} is not a proportion.")
    interval = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def average_interval(estimates: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Unweighted average of independent estimates, each (value, low, high), with its interval; the same confidence.

    MOVER (Zou & Donner, Statistics in Medicine 2008, eq. 3): deviations to the limits add up in quadrature.
    Raises ValueError if there is none.
    """
    if not estimates:
        raise ValueError("There is nothing to average.")
    k = len(estimates)
    mean = sum(value for value, _, _ in estimates) / k
    below = math.hypot(*(value - low for value, low, _ in estimates)) / k
    above = math.hypot(*(high - value for value, _, high in estimates)) / k
    return mean, mean - below, mean + above
