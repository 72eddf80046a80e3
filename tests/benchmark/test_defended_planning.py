"""What a run of a defended model would take, beside what it takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clipguard
from clipguard.attacks.engine.costs import Costs
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.batching import filled, filled_rows
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.planning.defended_speed import DefendedStopwatch, Padding
from clipguard.benchmark.planning.estimate import Estimate, Span
from clipguard.benchmark.planning.planner import plan_run
from clipguard.benchmark.planning.question import Question
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.runner import run_plan
from clipguard.core.records.run import RunRecord
from clipguard.defenses.attacking.engine import DefendedEngine
from clipguard.defenses.attacking.threats import DefendedModel, ThreatRecipe
from clipguard.defenses.classifiers import defend
from clipguard.defenses.registry import parse_defenses
from clipguard.store.store import Store
from tests.helpers.defended_models import CLASSES, LinearClip, images

THREATS = ["transfer", "adaptive", "black-box"]
HOW: dict[str, Any] = {"eps": "2,8", "n_samples": "all", "votes": 3, "draws": 2, "device": "cpu"}


def model() -> LinearClip:
    return LinearClip(curved=True).eval()


def data(n: int) -> tuple[np.ndarray, list[int], list[str]]:
    """Images whose labels are what the model takes them for, but for a fifth."""
    x = (255 * images(n, seed=3)).round()
    labels = model()(x / 255).argmax(dim=1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    pixels = x.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    return pixels, labels.tolist(), [str(label) for label in range(CLASSES)]


def spent(run: RunRecord) -> dict[str, int]:
    """Forward passes by threat, and of the probes."""
    return {e["attack"]: sum(cost["forward"] for cost in e["stages"].values()) for e in run["costs"]}


def assert_near(estimate: Estimate, run: RunRecord, factor: float = 1.2) -> None:
    """Every threat within its bounds, all of them near what was expected."""
    took = spent(run)
    for work in estimate.work:
        assert work.passes.least <= took[work.attack] <= work.passes.most, work.attack
        assert work.passes.expected is not None
        assert work.passes.expected == pytest.approx(sum(cost["forward"] for cost in work.stages.values()), abs=1)
    total = sum(took.values())
    assert estimate.passes.expected is not None
    assert total / factor <= estimate.passes.expected <= total * factor


@pytest.mark.parametrize("defense", ["jpeg", "csr", "bit-depth+random-resize"])
def test_a_run_is_near_its_plan(defense: str) -> None:
    how = {**HOW, "attacks": "pgd-2+square(queries=4)", "defense": defense}
    estimate = clipguard.plan(model(), data(40), **how)
    assert [work.attack for work in estimate.work] == THREATS
    assert {work.model for work in estimate.work} == {f"LinearClip + {defense}"}
    assert estimate.cells == 1 + 4 * 2  # clean; three threats and the worst case at two eps
    run = clipguard.bench(model(), data(40), **how).run
    assert_near(estimate, run)
    assert estimate.probes.expected == spent(run)["sanity probes"]


def test_runs_of_one_attack_side_by_side_and_full_batches() -> None:
    """More rows than fit a pass, an attack that cannot be shortened, and one whose points are not all gradients."""
    how = {**HOW, "defense": "random-resize", "batch_size": 16, "eps": "4", "probes": False, "draws": 1}
    how |= {"attacks": "pgd-2(restarts=2)+fgsm+fab-t(iterations=2,targets=2)", "threats": ["transfer", "adaptive"]}
    estimate = clipguard.plan(model(), data(30), **how)
    assert_near(estimate, clipguard.bench(model(), data(30), **how).run)


def test_bounds_alone() -> None:
    how = {**HOW, "attacks": "pgd-2+square(queries=4)", "defense": "random-resize", "eps_mode": "independent"}
    estimate = clipguard.plan(model(), data(30), pilot=0, **how)
    took = spent(clipguard.bench(model(), data(30), **how).run)
    assert estimate.passes.expected is None
    assert estimate.pilot["passes"] == 0
    assert all(work.passes.least <= took[work.attack] <= work.passes.most for work in estimate.work)
    assert 0 < took["sanity probes"] <= estimate.probes.most
    assert clipguard.plan(model(), data(4), attacks="none", defense="jpeg", **HOW).passes.least >= 4


@pytest.mark.parametrize("defense", ["csr", "ttc", "smoothing(samples=3)"])
def test_what_a_point_takes_is_what_a_run_takes_where_nothing_falls(defense: str) -> None:
    """All images survive an attack that may not stop: its passes are then known from one point and one look."""
    chain = parse_defenses(defense)
    classifier = defend(model(), chain)
    defended = DefendedModel(model(), classifier, seed=0, votes=3, draws=2)
    x = images(6)
    examples = [Example(i, x[i], int(label)) for i, label in enumerate(defended.judge("judge")(x).argmax(dim=1))]
    declared = chain[0].cost(CLASSES)[0]
    watch = DefendedStopwatch(defended, EngineOptions(), ThreatModel("linf"), 1e-9, examples, CLASSES, declared)
    judge = watch.judge()
    assert judge.forward <= judge.most == declared * (3 if chain[0].random else 1)
    recipe = ThreatRecipe("pgd-3", parse_recipe("pgd-3").stages)
    for approach in recipe.approaches(defended):
        search = watch.search(approach)
        assert search.forward <= search.most
        engine = DefendedEngine(defended, recipe, ThreatModel("linf"), [1e-9], EngineOptions())
        engine.approaches = [replace(approach, confidence=math.inf)]
        list(engine.run(examples))
        sizes = engine.sizes[approach.full_name]
        assert sizes["search", 6] == 4
        passes = sum(n * count * {"search": search, "judge": judge}[who].forward for (who, n), count in sizes.items())
        cost = engine.costs[approach.full_name]
        assert cost.forward <= passes
        assert cost.forward == pytest.approx(passes, rel=0.25)  # the last point needs no gradient


def test_rows_of_passes() -> None:
    options = EngineOptions(batch_size=64)
    padding = Padding(options, 16, on_gpu=False)
    assert [padding.rows(n) for n in (0, 0.25, 1, 16, 17.4, 64, 65, 130)] == [0, 4, 16, 16, 17, 64, 80, 144]
    assert Padding(options, 16, on_gpu=True).rows(33) == 64
    for fill in ("least", "multiple", "full", "alone"):
        for n in (1, 5, 16, 20):
            rows = len(filled(torch.zeros(n, 1), fill, 16, 32, small=4))  # type: ignore[arg-type]
            assert rows == filled_rows(n, fill, 16, 32, small=4)  # type: ignore[arg-type]


def test_costs_know_how_large_passes_were() -> None:
    costs = Costs()
    for images_by_attack in ({"a": 2}, {"a": 2}, {"a": 1, "b": 3}):
        with costs.charged(images_by_attack, {}):
            pass
    assert costs.sizes == {("a", 2): 2, ("a+b", 4): 1}
    assert math.fsum(n * count for (_, n), count in costs.sizes.items()) == costs.passes


def test_pilots_and_probes_are_kept(tmp_path: Path) -> None:
    """Of the embedded model, whose passes of few images are filled up: the run that follows makes the rest alone."""
    plan = make_plan("tiny", "emoji-food", attacks="pgd-2+square(queries=2)", n_samples=12, eps="4", device="cpu")
    plan = replace(plan, defense="random-resize", votes=1, draws=1, threats=("adaptive", "black-box"))
    store = Store(tmp_path / "store")
    estimate = plan_run(plan, Question(pilot=4), store=store)
    assert [(work.attack, work.pilot, work.left, work.stored) for work in estimate.work] == [
        ("adaptive", 4, 8, 8),
        ("black-box", 4, 8, 8),
    ]
    assert estimate.probes.most == 0
    assert estimate.defense is not None
    assert estimate.to_dict()["defense"]["votes"] == 1
    result, fresh = run_plan(plan, store=store), run_plan(plan)
    assert result.to_frame().equals(fresh.to_frame())
    assert result.run["findings"] == fresh.run["findings"]
    assert "sanity probes" not in {entry["attack"] for entry in result.run["costs"] if entry["stages"]}
    assert_near(estimate, result.run, 1.5)  # of few images
    done = plan_run(plan, Question(), store=store)
    assert done.passes == Span(0, 0, 0)
