"""`make regression`: what its rules let pass, and what fails, either way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipguard.benchmark.results.result import BenchResult
from clipguard.comparison.paired_cells import compare_results
from clipguard.comparison.rules import Rules

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "benchmarks" / "results" / "baseline"


@pytest.fixture(scope="module")
def baseline() -> BenchResult:
    return BenchResult.read(BASELINE)


@pytest.mark.parametrize(("flipped", "fails"), [(2, False), (3, True)])
@pytest.mark.parametrize("attack", ["none", "pgd-10", "apgd-ce(iterations=10)"])
def test_two_images_of_50_may_round_the_other_way_and_three_may_not(
    baseline: BenchResult, attack: str, flipped: int, fails: bool
) -> None:
    worse = BenchResult(baseline.run)
    rows = baseline.samples.copy()
    cell = rows[(rows.dataset == "emoji-food") & (rows.attack == attack) & (rows.eps == (0 if attack == "none" else 4))]
    rows.loc[cell.index[cell.robust][:flipped], "robust"] = False
    worse.add(rows)
    rules = Rules(max_drop=4)
    assert bool(compare_results(baseline, worse, rules).failed("any-drop")) == fails
    assert not compare_results(worse, baseline, rules).failed("any-drop")  # so the job compares the other way, too


def test_the_job_and_the_action_have_the_same_rules() -> None:
    makefile, workflow = (ROOT / "Makefile").read_text(), (ROOT / ".github/workflows/ci.yml").read_text()
    assert "--max-drop 4 --fail-on any-drop" in makefile
    assert 'max-drop: "4"\n          fail-on: any-drop' in workflow
    for text in (makefile, workflow):
        assert "benchmarks/results/baseline" in text


def test_the_baseline_names_no_path_of_a_machine() -> None:
    run = json.loads((BASELINE / "results.json").read_text())["run"]
    assert all(entry["source"].startswith("clipguard/assets/") for entry in run["datasets"].values())
