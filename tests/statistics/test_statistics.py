"""Intervals and tests against published values, and the error rates of `clipguard compare`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multinomial, norm

from clipguard.statistics.intervals import average_interval, interval_of_votes, wilson_interval
from clipguard.statistics.paired import (
    Pairs,
    change_score,
    holm,
    mcnemar_p_value,
    noninferiority_p_value,
    paired_interval,
    regression_p_value,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (Statistics in Medicine 1998), table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombe(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_refuses_what_is_not_a_proportion() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (
            9,
            2,
            0.06543,
        ),  # Fay, "Exact McNemar's test and matching confidence intervals" (vignette of exact2x2), 21/9/2/12
        (7, 1, 0.0703),  # Fagerland, Lydersen & Laake (Statistics in Medicine 2014), airway hyper-responsiveness
        (16, 6, 0.0525),  # the same, complete response before and after consolidation therapy
        (0, 0, 1.0),
    ],
)
def test_exact_mcnemar_agrees_with_published_values(lost: int, gained: int, p: float) -> None:
    assert mcnemar_p_value(lost, gained) == mcnemar_p_value(gained, lost) == pytest.approx(p, abs=6e-5)


def test_holm_agrees_with_a_published_example() -> None:
    # R's p.adjust(c(.01, .04, .03, .005), "holm"): the numbers of Wikipedia's "Holm-Bonferroni method".
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("n", "lost", "gained", "change", "low", "high"),
    [
        # Fagerland, Lydersen & Laake (Statistics in Medicine 2014), Tango's interval; digits of R's contingencytables.
        (161, 16, 6, -0.0621, -0.1240, -0.0054),
        (21, 7, 1, -0.2857, -0.5172, -0.0260),
    ],
)
def test_the_paired_interval_agrees_with_published_values(
    n: int, lost: int, gained: int, change: float, low: float, high: float
) -> None:
    pairs = Pairs(n, lost, gained)
    assert pairs.change == pytest.approx(change, abs=5e-5)
    assert paired_interval([pairs]) == pytest.approx((low, high), abs=5e-5)
    mirrored = paired_interval([Pairs(n, gained, lost)])
    assert mirrored == pytest.approx((-high, -low), abs=5e-5)


def test_without_margin_the_score_is_mcnemars() -> None:
    assert change_score([Pairs(100, 12, 5)], 0.0) == pytest.approx((5 - 12) / math.sqrt(5 + 12))


def test_where_no_image_was_lost_or_gained_the_interval_is_wilsons() -> None:
    _, high = wilson_interval(0, 50)
    assert paired_interval([Pairs(50, 0, 0)]) == pytest.approx((-high, high), abs=1e-6)


@pytest.mark.parametrize("pairs", [Pairs(20, 20, 0), Pairs(20, 0, 20), Pairs(1, 0, 0), Pairs(100_000, 300, 1)])
def test_extreme_counts_have_intervals_within_bounds(pairs: Pairs) -> None:
    low, high = paired_interval([pairs])
    assert -1 <= low <= pairs.change <= high <= 1
    assert low < high


def test_an_average_has_the_hand_made_mover_interval() -> None:
    sets = [Pairs(100, 10, 2), Pairs(50, 3, 3)]
    (l1, u1), (l2, u2) = (paired_interval([s]) for s in sets)
    below, above = math.hypot(-0.08 - l1, 0.0 - l2) / 2, math.hypot(u1 + 0.08, u2) / 2
    assert paired_interval(sets) == pytest.approx((-0.04 - below, -0.04 + above))
    assert paired_interval(sets[:1] * 4)[0] == pytest.approx(-0.08 - (-0.08 - l1) / 2)  # four times the images


@pytest.mark.parametrize("sets", [[Pairs(100, 12, 5)], [Pairs(100, 12, 5), Pairs(60, 4, 6)]])
def test_tests_and_interval_agree(sets: list[Pairs]) -> None:
    low, high = paired_interval(sets, confidence=0.9)
    assert change_score(sets, low) == pytest.approx(norm.isf(0.05), abs=1e-5)
    assert change_score(sets, high) == pytest.approx(norm.ppf(0.05), abs=1e-5)
    assert noninferiority_p_value(sets, -low) == pytest.approx(0.05, abs=1e-5)


def test_impossible_counts_are_refused() -> None:
    for counts in ((0, 0, 0), (3, 2, 2), (3, -1, 0)):
        with pytest.raises(ValueError, match="Impossible"):
            Pairs(*counts)


def chance(n: int, lost: float, gained: float, allowed: float) -> tuple[float, float]:
    """Exact probabilities that a cell is called a regression, and harmless, at level 0.05."""
    truth = multinomial(n, [lost, gained, 1 - lost - gained])
    regression = harmless = 0.0
    for k in range(min(n, int(n * lost + 40)) + 1):
        for m in range(min(n - k, int(n * gained + 40)) + 1):
            pairs, p = [Pairs(n, k, m)], float(truth.pmf([k, m, n - k - m]))
            regression += p * (regression_p_value(pairs, allowed) <= 0.05)
            harmless += p * (noninferiority_p_value(pairs, allowed) <= 0.05)
    return regression, harmless


@pytest.mark.parametrize("discordant", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("allowed", [0.0, 0.01])
def test_no_change_is_no_regression(discordant: float, allowed: float) -> None:
    regression, _ = chance(60, discordant / 2, discordant / 2, allowed)
    assert regression <= 0.05


@pytest.mark.parametrize("gained", [0.01, 0.1])
def test_exactly_the_allowed_drop_is_rarely_called_more_or_less(gained: float) -> None:
    regression, harmless = chance(100, gained + 0.05, gained, 0.05)
    assert regression <= 0.065  # the score test holds its level for large n
    assert harmless <= 0.065


def test_a_drop_well_beyond_the_allowed_is_found() -> None:
    regression, harmless = chance(100, 0.22, 0.02, 0.05)
    assert regression > 0.95
    assert harmless < 1e-6


def test_over_many_cells_false_alarms_stay_below_alpha() -> None:
    generator = np.random.default_rng(0)
    runs, alarms = 300, 0
    for _ in range(runs):
        counts = generator.multinomial(80, [0.05, 0.05, 0.9], size=4)  # four sets, nothing changed
        sets = [Pairs(80, int(lost), int(gained)) for lost, gained, _ in counts]
        p_values = [regression_p_value(cell, 0.0) for cell in (*([s] for s in sets), sets)]
        alarms += min(holm(p_values)) <= 0.05
    assert alarms <= 0.05 * runs


def test_the_interval_of_an_average_is_that_of_its_parts_in_quadrature() -> None:
    assert average_interval([(0.5, 0.4, 0.7)]) == pytest.approx((0.5, 0.4, 0.7))
    assert average_interval([(0.5, 0.2, 0.8), (0.7, 0.3, 0.9)]) == pytest.approx((0.6, 0.35, 0.6 + math.sqrt(0.13) / 2))
    with pytest.raises(ValueError, match="nothing"):
        average_interval([])


def test_votes_cast_again_change_what_was_close() -> None:
    """Of 5 votes 5 are 11/12 a vote: of 5 of those three or more are right with chance 0.99502; 3 are 7/12, 0.65296."""

    def majority(p: float) -> float:
        return sum(math.comb(5, k) * p**k * (1 - p) ** (5 - k) for k in (3, 4, 5))

    sure, close = majority(11 / 12), majority(7 / 12)
    both = math.sqrt(sure * (1 - sure) + close * (1 - close)) / 2
    assert interval_of_votes(np.array([1.0, 0.2]), 5) == pytest.approx(1.959964 * both)
    alone = interval_of_votes(np.array([1.0]), 5)
    assert alone == pytest.approx(interval_of_votes(np.array([-1.0]), 5))
    assert interval_of_votes(np.array([1.0]), 101) < alone / 100
