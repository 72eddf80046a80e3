"""Budgets and plans, before anything heavy is loaded."""

from __future__ import annotations

import pytest

from clipguard.benchmark.plan import BenchPlan, parse_eps
from clipguard.errors import AttackError, ClipguardError


def test_linf_eps_is_in_units_of_one_255th_sorted_and_each_once() -> None:
    radii = parse_eps(["4/255,1", "8", "1"], "linf")
    assert [r.typed for r in radii] == [1, 4, 8]
    assert [r.pixels for r in radii] == pytest.approx([1 / 255, 4 / 255, 8 / 255])


def test_l2_eps_is_plain() -> None:
    assert [(r.typed, r.pixels) for r in parse_eps(["0.5"], "l2")] == [(0.5, 0.5)]


@pytest.mark.parametrize("text", ["", "x", "1;2", "-1", "nan", "inf", "256", "1/256", "1//255"])
def test_bad_linf_eps(text: str) -> None:
    with pytest.raises(AttackError, match="--eps"):
        parse_eps([text], "linf")


@pytest.mark.parametrize("text", ["1/2", "-0.1", "inf"])
def test_bad_l2_eps(text: str) -> None:
    with pytest.raises(AttackError, match="--eps"):
        parse_eps([text], "l2")


def test_unknown_norm() -> None:
    with pytest.raises(AttackError, match="l1"):
        parse_eps(["1"], "l1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("tiny", "tiny")}, "twice"),
        ({"datasets": ()}, "missing"),
        ({"engine": "fast"}, "--engine"),
        ({"resolution": "full"}, "--resolution"),
        ({"n_samples": 0}, "--n-samples"),
        ({"batch_size": 0}, "--batch-size"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_plans_that_cannot_run(change: dict[str, object], message: str) -> None:
    fields = {"models": ("tiny",), "datasets": ("emoji-food",), "eps": tuple(parse_eps(["1"], "linf"))} | change
    with pytest.raises(ClipguardError, match=message):
        BenchPlan(**fields).check()  # type: ignore[arg-type]
