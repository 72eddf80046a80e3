"""What a run would take, beside what it takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import clipguard
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import Recipe, parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.planning.bounds import least_passes, most_passes
from clipguard.benchmark.planning.estimate import Estimate, Span, Work
from clipguard.benchmark.planning.pilot import pick
from clipguard.benchmark.planning.planner import plan_run
from clipguard.benchmark.planning.question import Question
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.runner import run_plan
from clipguard.core.errors import ClipguardError
from clipguard.core.records.run import RunRecord
from clipguard.store.store import Store

NO_PILOT = Question(pilot=0)
SHORT = {
    "fgsm": 2,
    "pgd-3(restarts=2)": 4,
    "cw-3": 4,
    "apgd-ce(iterations=4)": 5,
    "apgd-dlr(iterations=4)": 5,
    "apgd-t(iterations=3,targets=2)": 4,
    "fab-t(iterations=4,targets=2)": 8,
    "square(queries=6)": 7,
}  # and the most passes of a run


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes are counted here, and how long they take is of no interest."""
    monkeypatch.setattr("clipguard.benchmark.planning.speed.LEAST_SECONDS", 0.0)


def planned(attacks: str, n: int = 6, **settings: object) -> BenchPlan:
    return make_plan("tiny", "emoji-food", attacks=attacks, n_samples=n, device="cpu", **{"eps": "1,4", **settings})


def forward(run: RunRecord, *, probes: bool = True) -> int:
    entries = [entry for entry in run["costs"] if probes or entry["attack"] != "sanity probes"]
    return sum(cost["forward"] for entry in entries for cost in entry["stages"].values())


def work(left: int, expected: float | None, longest: float) -> Work:
    seconds = Span(1.0, expected, 100.0)
    return Work("m", "d", "a", left, left, 2 * left, 0, 0, seconds, seconds, longest, {})


@pytest.mark.parametrize("attack", SHORT)
def test_an_attack_declares_the_most_passes_of_a_run(attack: str) -> None:
    """At an eps where nothing falls, over labels that are the model's own."""
    (stage,) = parse_recipe(attack).stages
    assert stage.most_passes() == SHORT[attack]
    data, model = clipguard.load_dataset("emoji-food"), clipguard.load_model("tiny")
    classifier, pixels = model.classifier(data.class_names, data.templates), model.preprocess()
    image = pixels(data.image(0))
    label = int(classifier(image[None]).argmax())
    engine = Engine(classifier, Recipe("x", (stage,)), ThreatModel("linf"), [1e-6], EngineOptions())
    (outcome,) = engine.run([Example(0, image, label)])
    assert outcome.eps_outcomes[0].robust
    spent = engine.costs[stage.full_name].forward
    runs = stage.runs(len(data.class_names))
    assert spent <= runs * stage.most_passes()
    assert spent == runs * stage.most_passes() or stage.name == "fab-t"


@pytest.mark.parametrize("eps_mode", ["ascending", "independent", "nested"])
def test_a_run_is_between_the_bounds(eps_mode: str) -> None:
    for attack in ("fgsm+pgd-3", "apgd-t(iterations=3,targets=2)+fab-t(iterations=3,targets=2)+square(queries=6)"):
        plan = planned(attack, eps_mode=eps_mode, batch_size=8)
        estimate = plan_run(plan, NO_PILOT)
        assert estimate.passes.expected is None
        assert estimate.passes.least <= forward(run_plan(plan).run) <= estimate.passes.most


def test_bounds_come_from_what_attacks_declare() -> None:
    recipe = parse_recipe("apgd-ce+apgd-t")
    standing = most_passes(recipe, 3, "ascending", 20, right=True)
    assert standing == {"clean": 1, "apgd-ce": 3 * 101, "apgd-t": 3 * 9 * 101, "verification": 3 * 10}
    assert most_passes(recipe, 3, "ascending", 4, right=None)["apgd-t"] == 3 * 3 * 101
    assert most_passes(recipe, 3, "ascending", 20, right=False) == {"clean": 1}
    assert most_passes(replace(recipe, eot=2), 1, "ascending", 20, right=True)["apgd-ce"] == 2 * 101
    assert most_passes(parse_recipe("fgsm"), 2, "nested", 20, right=True) == {
        "clean": 1,
        "apgd-ce": 42,
        "verification": 2,
    }
    least = [least_passes(recipe, 3, mode, right=True) for mode in ("ascending", "independent", "nested")]
    assert least == [3, 7, 7]
    assert least_passes(recipe, 3, "independent", right=False) == 1
    assert least_passes(parse_recipe("none"), 3, "ascending", right=True) == 1


def test_the_estimate_is_near_the_run_and_its_pilot_changes_no_result(tmp_path: Path) -> None:
    plan = planned("pgd-5", 48)
    store = Store(tmp_path / "store")
    estimate = plan_run(plan, Question(), store=store)
    (cell,) = estimate.work
    assert (cell.pilot, cell.asked, cell.left) == (16, 3 * 48, 48 - 16)
    assert estimate.pilot["images"] == 16
    assert cell.stored == 3 * 16
    stored, fresh = run_plan(plan, store=store), run_plan(plan)
    assert stored.to_frame().equals(fresh.to_frame())
    assert stored.run["costs"][0]["reused"] == 3 * 16
    for passes, spent in (
        (estimate.passes, forward(stored.run)),
        (plan_run(plan, Question()).passes, forward(fresh.run)),
    ):
        assert passes.expected is not None
        assert spent / 1.5 <= passes.expected <= spent * 1.5
        assert passes.least <= spent <= passes.most


def test_what_is_stored_is_not_to_be_done(tmp_path: Path) -> None:
    store, few = Store(tmp_path / "store"), planned("pgd-3")
    run_plan(few, store=store)
    estimate = plan_run(few, Question(), store=store)
    assert (estimate.passes.least, estimate.passes.expected) == (0, 0)
    assert estimate.work[0].stored == estimate.work[0].asked == 18
    more = planned("pgd-3", eps="1,4,8")
    before = plan_run(more, NO_PILOT, store=store)
    assert before.work[0].stored < before.work[0].asked
    assert before.work[0].passes.most < plan_run(more, NO_PILOT).work[0].passes.most
    spent = forward(run_plan(more, store=store, probes=False).run)
    assert before.work[0].passes.least <= spent <= before.work[0].passes.most


def test_workers_share_what_can_be_shared() -> None:
    assert work(100, 60.0, 3.0).shared(1) == Span(1.0, 60.0, 100.0)
    assert work(100, 60.0, 4.0).shared(4) == Span(0.25, 15.0 + 3.0, 25.0 + 3.0)
    assert work(2, 60.0, 4.0).shared(64).expected == 30 + 2  # no more workers than images
    assert work(0, 0.0, 0.0).shared(4).expected == 0
    assert work(9, None, 0.0).shared(4).expected is None


def test_what_it_costs() -> None:
    machine = {"platform": "p", "device": "cpu", "threads": 1}
    nothing = Span(0, 0, 0)
    estimate = Estimate(
        3, 100, [work(100, 60.0, 0.0)], nothing, nothing, 5.0, 4, 64, {"host": 1.0, "gpu": None}, machine, {}, 7.2
    )
    assert estimate.wall_seconds == Span(5.25, 20.0, 30.0)
    assert estimate.cost is not None
    assert estimate.cost.expected == pytest.approx(4 * 20 * 7.2 / 3600)
    assert replace(estimate, price=None).cost is None
    content = json.loads(estimate.to_json())
    assert content["cost"]["expected"] == 0.16
    assert content["wall_seconds"] == {"least": 5.25, "expected": 20.0, "most": 30.0}


def test_a_pilot_is_spread_over_the_margins() -> None:
    margins = {index: float(index % 10) for index in range(40)}
    assert pick(range(40), margins, 0) == []
    assert pick([3, 1], margins, 16) == [1, 3]
    assert {margins[index] for index in pick(range(40), margins, 10)} == set(range(10))


def test_what_cannot_be_planned_is_said() -> None:
    for settings, message in (
        ({"engine": "reference"}, "engine=reference"),
        ({"ray": "auto"}, "name `workers`"),
        ({"device": "cuda:0", "workers": 2}, "is one GPU"),
    ):
        with pytest.raises(ClipguardError, match=message):
            plan_run(replace(planned("fgsm"), **settings), NO_PILOT)
    for question in (Question(price=-1), Question(pilot=-1)):
        with pytest.raises(ClipguardError, match="at least 0"):
            plan_run(planned("fgsm"), question)


def test_from_python() -> None:
    attack = clipguard.PGD(iterations=2)
    estimate = clipguard.plan("tiny", "emoji-food", "4", attack, n_samples=4, probes=False, pilot=2, price=1, workers=2)
    assert isinstance(estimate, clipguard.Estimate)
    assert (estimate.workers, estimate.cells, estimate.images) == (2, 2, 4)
    assert estimate.probes == Span(0, 0, 0)
    with pytest.raises(ClipguardError, match="`pilot` must be"):
        clipguard.plan("tiny", "emoji-food", pilot="x")  # type: ignore[arg-type]
