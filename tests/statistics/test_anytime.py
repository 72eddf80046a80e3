"""Betting against hypotheses on a change in accuracy: e-values, confidence sequences, and how often they ever err."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multinomial

from clipguard.statistics.anytime import (
    BET_SHARES,
    MAX_LOG_E,
    Outcomes,
    adjusted_p_values,
    confidence_sequence,
    log_e_value,
)


def changes(n: int, lost: int, gained: int) -> Outcomes:
    return np.repeat([-1.0, 1.0, 0.0], [lost, gained, n - lost - gained])


@pytest.mark.parametrize("outcome", [-1.0, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("mean", [-0.05, 0.0, 0.01])
def test_one_image_is_half_the_highest_bet(outcome: float, mean: float) -> None:
    assert math.exp(log_e_value(np.array([outcome]), mean)) == pytest.approx(1 + (outcome - mean) / (1 + mean) / 2)


def test_many_images_that_did_not_change() -> None:
    expected = np.mean((1 + BET_SHARES * 0.01 / 0.99) ** 450)
    assert math.exp(log_e_value(np.zeros(450), -0.01)) == pytest.approx(expected)
    assert expected >= 20 > np.mean((1 + BET_SHARES * 0.01 / 0.99) ** 449)  # docs/compare.md: 450 are the fewest


@pytest.mark.parametrize(("lost", "gained", "mean"), [(0.2, 0.15, 0.05), (0.3, 0.3, 0.0), (0.02, 0.07, -0.05)])
def test_a_stake_gains_nothing_on_average_where_the_hypothesis_is_just_true(
    lost: float, gained: float, mean: float
) -> None:
    n, truth = 12, multinomial(12, [lost, gained, 1 - lost - gained])
    expected = sum(
        truth.pmf([k, m, n - k - m]) * math.exp(log_e_value(-changes(n, k, m), mean))
        for k in range(n + 1)
        for m in range(n + 1 - k)
    )
    assert expected == pytest.approx(1.0)


@pytest.mark.parametrize(("lost", "gained"), [(0.3, 0.25), (0.5, 0.45)])
def test_the_chance_of_ever_being_wrong_is_at_most_alpha(lost: float, gained: float) -> None:
    """Exact, over all outcomes of 40 images, looking after every one: the drop is the 5 points allowed."""
    alive, wrong = {(0, 0): 1.0}, 0.0
    for n in range(1, 41):
        after: dict[tuple[int, int], float] = {}
        for (k, m), p in alive.items():
            for state, q in (((k + 1, m), lost), ((k, m + 1), gained), ((k, m), 1 - lost - gained)):
                after[state] = after.get(state, 0.0) + p * q
        stopped = {s for s in after if log_e_value(-changes(n, *s), 0.05) >= math.log(20)}
        wrong += sum(after[s] for s in stopped)
        alive = {s: p for s, p in after.items() if s not in stopped}
    assert sum(alive.values()) + wrong == pytest.approx(1.0)
    assert 0.001 < wrong <= 0.05


def test_the_confidence_sequence_holds_what_bets_have_not_refuted() -> None:
    seen = changes(200, 30, 10)
    low, high = confidence_sequence(seen)
    assert -1 < low < -0.1 < high < 1
    assert log_e_value(seen, low) == pytest.approx(math.log(40))
    assert log_e_value(-seen, -high) == pytest.approx(math.log(40))
    assert confidence_sequence(-seen) == pytest.approx((-high, -low))
    assert confidence_sequence(seen, 0.99)[0] < low


@pytest.mark.parametrize("counts", [(1, 0, 0), (1, 1, 0), (20, 20, 0), (20, 0, 20), (100_000, 300, 1)])
def test_extreme_counts_have_limits_within_bounds(counts: tuple[int, int, int]) -> None:
    seen = changes(*counts)
    low, high = confidence_sequence(seen)
    assert -1 <= low <= seen.mean() <= high <= 1
    assert low < high
    assert log_e_value(-seen, 0.01) <= MAX_LOG_E


def test_the_confidence_sequence_ever_leaves_the_truth_out_in_5_of_100_at_most() -> None:
    generator = np.random.default_rng(0)
    runs, missed = 120, 0
    for _ in range(runs):
        seen = generator.choice([-1.0, 0.0, 1.0], p=[0.12, 0.8, 0.08], size=400)
        missed += any(
            not low <= -0.04 <= high for low, high in (confidence_sequence(seen[:n]) for n in (100, 200, 400))
        )
    assert missed <= 0.05 * runs


def test_as_if_there_were_more_images() -> None:
    seen = changes(40, 5, 1)
    assert log_e_value(-seen, 0.01, times=3) == pytest.approx(log_e_value(-np.tile(seen, 3), 0.01))


def test_e_values_are_adjusted_by_the_lowest_average() -> None:
    # e = 30, 10, 2: sets with the first have averages 30, 20, 16, 14; with the second 10, 20, 6, 14; with the third ...
    assert adjusted_p_values([math.log(e) for e in (30, 10, 2)]) == pytest.approx([1 / 14, 1 / 6, 1 / 2])
    assert adjusted_p_values([math.log(30)]) == pytest.approx([1 / 30])
    assert adjusted_p_values([math.log(0.5), 0.0]) == [1.0, 1.0]
    assert 0 < adjusted_p_values([MAX_LOG_E, MAX_LOG_E, 0.0])[0] < 1e-200


def test_peeking_at_many_cells_raises_few_false_alarms() -> None:
    """Four sets, clean and attacked, and both averages; every drop is the one allowed."""
    generator = np.random.default_rng(0)
    runs, alarms = 200, 0
    for _ in range(runs):
        clean = generator.choice([1.0, -1.0, 0.0], p=[0.06, 0.05, 0.89], size=(4, 300))  # lost: 1
        robust = np.where(generator.random((4, 300)) < 0.5, clean, generator.permutation(clean, axis=1))
        cells = [*clean, *robust, clean.mean(axis=0), robust.mean(axis=0)]
        alarms += any(
            min(adjusted_p_values([log_e_value(cell[:n], 0.01) for cell in cells])) <= 0.05
            for n in (50, 75, 113, 170, 300)
        )
    assert alarms <= 0.05 * runs
