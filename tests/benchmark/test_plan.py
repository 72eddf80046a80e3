"""Budgets and plans, before anything heavy is loaded."""

from __future__ import annotations

import pytest

from clipguard.benchmark.plan import BenchPlan
from clipguard.core.eps import read_eps, spell_eps
from clipguard.core.errors import AttackError, ClipguardError


def test_linf_eps_is_in_units_of_one_255th_sorted_and_each_once() -> None:
    radii = read_eps(["4/255,1", "8", "1"], "linf")
    assert [r.typed for r in radii] == [1, 4, 8]
    assert [r.pixels for r in radii] == pytest.approx([1 / 255, 4 / 255, 8 / 255])


def test_l2_eps_is_plain() -> None:
    assert [(r.typed, r.pixels) for r in read_eps(["0.5"], "l2")] == [(0.5, 0.5)]


@pytest.mark.parametrize("text", ["", "x", "1;2", "-1", "nan", "inf", "256", "1/256", "1//255"])
def test_bad_linf_eps(text: str) -> None:
    with pytest.raises(AttackError, match="`eps`"):
        read_eps([text], "linf")


@pytest.mark.parametrize("text", ["1/2", "-0.1", "inf"])
def test_bad_l2_eps(text: str) -> None:
    with pytest.raises(AttackError, match="`eps`"):
        read_eps([text], "l2")


def test_unknown_norm() -> None:
    with pytest.raises(AttackError, match="l1"):
        read_eps(["1"], "l1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("tiny", "tiny")}, "twice"),
        ({"datasets": ()}, "missing"),
        ({"engine": "fast"}, "`engine`"),
        ({"resolution": "full"}, "`resolution`"),
        ({"n_samples": 0}, "`n_samples`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_plans_that_cannot_run(change: dict[str, object], message: str) -> None:
    fields = {"models": ("tiny",), "datasets": ("emoji-food",), "eps": tuple(read_eps(["1"], "linf"))} | change
    with pytest.raises(ClipguardError, match=message):
        BenchPlan(**fields).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("typed", [0.0, 1e-5, 0.0157, 0.05, 0.1, 1 / 3, 0.5, 128 / 255, 0.3765, 1.0, 4.0, 16.0, 128.0])
def test_every_number_can_be_spelled_so_that_it_is_read_back(typed: float, norm: str) -> None:
    assert [radius.typed for radius in read_eps([spell_eps(typed, norm)], norm)] == [typed]


def test_a_plan_reads_back_what_it_wrote_whatever_the_budget() -> None:
    plan = BenchPlan(("tiny",), ("emoji-food",), tuple(read_eps(["0.0157/255,0.05/255,4"], "linf")))
    assert BenchPlan.from_dict(plan.to_dict(), ["tiny"]) == plan
    plan = BenchPlan(("tiny",), ("emoji-food",), tuple(read_eps(["128/1,128/255"], "l2")), norm="l2")
    assert BenchPlan.from_dict(plan.to_dict(), ["tiny"]) == plan
