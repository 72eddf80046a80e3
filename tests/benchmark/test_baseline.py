"""`make regression`: what its rules let pass, and what fails, either way round."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from clipguard.benchmark.results.result import BenchResult
from clipguard.comparison.paired_cells import compare_results
from clipguard.comparison.rules import Rules

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "benchmarks" / "results" / "baseline"


@pytest.fixture(scope="module")
def baseline() -> BenchResult:
    return BenchResult.load(BASELINE)


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
    """`make -n` prints the job's commands; the action is the step of CI's workflow that uses this repository."""
    printed = subprocess.run(["make", "-n", "regression"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line) for line in printed.splitlines() if "compare" in line.split()]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if step.get("uses") == "./"]
    (action,) = (step["with"] for step in steps)
    assert action["base"] == str(BASELINE.relative_to(ROOT))
    compared = []
    for command in commands:
        assert command[command.index("--max-drop") + 1] == action["max-drop"] == "4"
        assert command[command.index("--fail-on") + 1] == action["fail-on"] == "any-drop"
        compared.append([word for word in command if "/" in word and "clipguard" not in word])
    assert compared == [[action["base"], "build/regression"], ["build/regression", action["base"]]]


def test_the_baseline_names_no_path_of_a_machine() -> None:
    run = json.loads((BASELINE / "results.json").read_text())["run"]
    assert all(entry["source"].startswith("clipguard/assets/") for entry in run["datasets"].values())
