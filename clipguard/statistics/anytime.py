"""Tests and intervals for a change in accuracy that hold after every image: look at any time, stop when decided.

An e-value is what a stake of 1 has become by betting, image by image, against a hypothesis. While that is true, bets
gain nothing on average, so the chance that the stake *ever* grows to 1 / alpha is at most alpha (Ville 1939).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import logsumexp

from clipguard.statistics.paired import BOUNDARY_GAP

# The bets that the stake is split over evenly, as shares of the highest bet that cannot ruin.
BET_SHARES = (np.arange(20) + 0.5) / 20
MAX_LOG_E = 600.0  # logarithms of e-values are cut there, so that sums of e-values are finite in float64

Outcomes = npt.NDArray[np.float64]
"""Of one image each, in [-1, 1]: 1 gained, -1 lost, 0 unchanged."""


def log_e_value(outcomes: Outcomes, mean: float, times: float = 1.0) -> float:
    """Natural logarithm of the e-value against "the mean of `outcomes` is at most `mean`".

    It falls as `mean` grows, and does not depend on the order of the outcomes.

    Args:
        outcomes: (n,) in [-1, 1], of images in random order.
        mean: in (-1, 1).
        times: as if there were so many times the images, in the same proportions.

    Returns:
        At most `MAX_LOG_E`.
    """
    values, counts = np.unique(outcomes, return_counts=True)
    return float(log_e_of_counts(values, counts * times, mean))


def log_e_of_counts(values: Outcomes, counts: npt.NDArray[Any], mean: float) -> Outcomes:
    """The same for outcomes that came many times.

    The e-value is the average, over the shares c in BET_SHARES, of prod_i (1 + c (x_i - mean) / (1 + mean)): betting
    as in Waudby-Smith and Ramdas (JRSS B 2024, section 4).

    Args:
        values: (V,) outcomes in [-1, 1].
        counts: (..., V), how many images had each.
        mean: in (-1, 1).

    Returns:
        (...), each at most `MAX_LOG_E`.
    """
    growth = counts @ np.log1p(BET_SHARES * (values[:, None] - mean) / (1 + mean))
    log_e: Outcomes = np.minimum(MAX_LOG_E, logsumexp(growth, axis=-1) - math.log(len(BET_SHARES)))
    return log_e


def confidence_sequence(changes: Outcomes, confidence: float = 0.95) -> tuple[float, float]:
    """Limits of a mean that hold after every image: they *ever* leave it out with probability 1 - confidence at most.

    They are the means that bets from below or above, each at half the error, have not refuted.

    Args:
        changes: (n,) in [-1, 1], of images in random order.
        confidence: in (0, 1).

    Returns:
        The limits, in [-1, 1].
    """
    threshold = math.log(2 / (1 - confidence))
    return _lower_limit(changes, threshold), -_lower_limit(-changes, threshold)


def adjusted_p_values(log_e_values: Sequence[float]) -> list[float]:
    """P-values for testing all hypotheses at once.

    Rejecting those at most alpha makes a false rejection anywhere, ever, at most alpha likely, however the e-values
    depend on one another: each is the lowest of the averages over all sets with it (Vovk and Wang, Annals of Statistics
    2021, algorithm 1), and p is 1 / e.

    Args:
        log_e_values: natural logarithms, each at most `MAX_LOG_E`.

    Returns:
        The adjusted p-values, in the same order.
    """
    e = np.exp(np.asarray(log_e_values))
    adjusted = []
    for i, e_value in enumerate(e):
        sums = e_value + np.concatenate([[0.0], np.cumsum(np.sort(np.delete(e, i)))])
        lowest = float((sums / np.arange(1, len(e) + 1)).min())
        adjusted.append(1 / max(1.0, lowest))
    return adjusted


def _lower_limit(outcomes: Outcomes, threshold: float) -> float:
    """The mean at which the log e-value is `threshold`: those below are refuted."""
    low, high = -1 + BOUNDARY_GAP, 1 - BOUNDARY_GAP
    if log_e_value(outcomes, low) <= threshold:
        return -1.0
    at_most = min(max(float(outcomes.mean()), low), high)  # the mean that was seen is never refuted
    return float(brentq(lambda mean: log_e_value(outcomes, mean) - threshold, low, at_most, xtol=1e-12))
