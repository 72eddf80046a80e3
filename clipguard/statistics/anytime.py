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

from clipguard.statistics.paired import EDGE

BETS = (np.arange(20) + 0.5) / 20  # as shares of the highest bet that cannot ruin; the stake is split evenly over them
MOST = 600.0  # of the logarithm of an e-value, so that sums of e-values are finite

Outcomes = npt.NDArray[np.float64]


def log_e_value(outcomes: Outcomes, mean: float, times: float = 1.0) -> float:
    """Natural logarithm, at most 600, of the e-value against "the mean of `outcomes` is at most `mean`".

    outcomes: (n,) in [-1, 1], of images in random order. mean: in (-1, 1). times: as if there were so many times the
    images, in the same proportions. The e-value falls as `mean` grows, and does not depend on the order.
    """
    values, counts = np.unique(outcomes, return_counts=True)
    return float(log_e_of_counts(values, counts * times, mean))


def log_e_of_counts(values: Outcomes, counts: npt.NDArray[Any], mean: float) -> Outcomes:
    """The same for outcomes `values`, (V,), that came so many times: counts (..., V) -> (...).

    The e-value is the average, over the shares c in BETS, of prod_i (1 + c (x_i - mean) / (1 + mean)): betting as in
    Waudby-Smith and Ramdas (JRSS B 2024, sec. 4).
    """
    growth = counts @ np.log1p(BETS * (values[:, None] - mean) / (1 + mean))
    log_e: Outcomes = np.minimum(MOST, logsumexp(growth, axis=-1) - math.log(len(BETS)))
    return log_e


def confidence_sequence(changes: Outcomes, confidence: float = 0.95) -> tuple[float, float]:
    """Limits of the mean of `changes`, (n,), all within [-1, 1]: at most a share 1 - confidence *ever* leaves it out.

    They are the means that bets from below or above, each at half the error, have not refuted.
    """
    wanted = math.log(2 / (1 - confidence))
    return _lower(changes, wanted), -_lower(-changes, wanted)


def adjusted_p_values(log_e_values: Sequence[float]) -> list[float]:
    """P-values for testing all hypotheses at once, from log e-values (at most 600), in the order given.

    Rejecting those at most alpha makes a false rejection anywhere, ever, at most alpha likely, however the e-values
    depend on one another: each is the lowest of the averages over all sets with it (Vovk and Wang, Ann. Statist. 2021,
    algorithm 1), and p is 1 / e.
    """
    e = np.exp(np.asarray(log_e_values))
    adjusted = []
    for i, own in enumerate(e):
        sums = own + np.concatenate([[0.0], np.cumsum(np.sort(np.delete(e, i)))])
        lowest = float((sums / np.arange(1, len(e) + 1)).min())
        adjusted.append(1 / max(1.0, lowest))
    return adjusted


def _lower(outcomes: Outcomes, wanted: float) -> float:
    """The mean at which the log e-value is `wanted`: those below are refuted."""
    low, high = -1 + EDGE, min(max(float(outcomes.mean()), -1 + EDGE), 1 - EDGE)
    if log_e_value(outcomes, low) <= wanted:
        return -1.0
    return float(brentq(lambda mean: log_e_value(outcomes, mean) - wanted, low, high, xtol=1e-12))
