"""`compare --sequential`: real runs in batches, each image once, until the verdict is settled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_models import BLIND

import clipguard
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.folder import ResultFolder
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import to_markdown
from clipguard.benchmark.runner import run_plan
from clipguard.comparison.inputs import read_inputs
from clipguard.comparison.output import comparison_notes
from clipguard.comparison.result import Comparison
from clipguard.comparison.rules import Rules
from clipguard.comparison.sequential import batch_ends, compare_in_batches
from clipguard.core.errors import ClipguardError, DatasetError, ResultError
from clipguard.core.progress import Silent
from clipguard.data.dataset import in_random_order

SETS = ("emoji-food", "emoji-travel")
CLEAN: dict[str, Any] = {"datasets": SETS, "attacks": ("none",)}


class Measured:
    """`run_plan`, and the plans it was asked for."""

    def __init__(self) -> None:
        self.plans: list[BenchPlan] = []

    def __call__(self, plan: BenchPlan) -> BenchResult:
        self.plans.append(plan)
        return run_plan(plan)


def run(
    base: str,
    candidate: str,
    measure: Callable[[BenchPlan], BenchResult] = run_plan,
    *,
    first: int = 20,
    **options: Any,
) -> tuple[Comparison, BenchResult]:
    rules = Rules(options.pop("max_drop", 1.0), metrics=options.pop("metrics", ("clean", "robust", "average")))
    return compare_in_batches(read_inputs(base, candidate, options), rules, measure, first, False, Silent())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the embedded model."""
    folder = tmp_path_factory.mktemp("runs") / "good"
    result = clipguard.bench(["tiny"], n_samples=60, **CLEAN)
    ResultFolder(folder).write(result, to_markdown(result))
    return folder


def same_result(one: BenchResult, other: BenchResult) -> None:
    pd.testing.assert_frame_equal(one.samples, other.samples, rtol=1e-3)  # batches round differently
    assert one.cells == other.cells
    for field in ("plan", "datasets", "models", "attacks", "seed"):
        assert one.run[field] == other.run[field]


def test_a_broken_model_is_found_in_the_first_batch(good: Path) -> None:
    measure = Measured()
    found, result = run(str(good), BLIND, measure)
    assert found.verdict == "regression"
    assert [plan.part for plan in measure.plans] == [(0, 20)]
    assert found.sequential == {
        "looks": [20],
        "n": dict.fromkeys(SETS, 20),
        "of": dict.fromkeys(SETS, 60),
        "saved": pytest.approx(2 / 3),
    }
    assert json.loads(found.to_json())["sequential"]["n"]["emoji-food"] == 20
    assert "stopped at 40 of 120 images (67 % saved), looked at 20 a data set" in "\n".join(comparison_notes(found))
    same_result(result, clipguard.bench([BLIND], n_samples=60, part=(0, 20), **CLEAN))


def test_undecided_to_the_end_gives_the_result_of_a_plain_bench() -> None:
    measure = Measured()
    attacked = {"datasets": SETS, "attacks": ("pgd-2",), "eps": ("1,2",), "n_samples": 40, "device": "cpu"}
    found, result = run("tiny", "tiny", measure, **attacked)
    assert found.verdict == "inconclusive"
    assert [plan.part for plan in measure.plans] == [(0, 20), (20, 30), (30, 40)]
    same_result(result, clipguard.bench(["tiny"], **attacked))
    assert len(result.run["findings"]) == (1 + 3) * 2  # of the predictions of all images, and of each batch
    assert len(result.run["costs"]) == 2 * 3 * 2  # of attacks and probes, of each batch
    assert {(cell.lost, cell.gained) for cell in found.cells} == {(0, 0)}
    assert "all 80 images, looked at 20, 30, 40 a data set" in "\n".join(comparison_notes(found))
    single, average = found.cells[0], found.cells[-1]
    assert (single.n, average.n) == (40, 80)
    assert (single.ci_low, single.ci_high) == (average.ci_low, average.ci_high)  # an average moves with every pair
    assert single.n_to_decide == 450


def test_the_number_that_would_decide_does_decide() -> None:
    found, _ = run("tiny", "tiny", n_samples=20, max_drop=10, **CLEAN)
    assert {cell.n_to_decide for cell in found.cells if cell.dataset != "average"} == {43}
    assert run("tiny", "tiny", n_samples=42, first=42, max_drop=10, **CLEAN)[0].verdict == "inconclusive"
    assert run("tiny", "tiny", n_samples=43, first=43, max_drop=10, **CLEAN)[0].verdict == "no regression"


def test_a_fine_model_is_passed_early() -> None:
    found, result = run("tiny", "tiny", n_samples=150, first=50, max_drop=10, **CLEAN)
    assert found.verdict == "no regression"
    assert found.sequential is not None
    assert found.sequential["n"] == dict.fromkeys(SETS, 50)
    assert {cell.n for cell in result.cells} == {50}


def test_small_data_sets_run_out_before_large_ones() -> None:
    """No number of equal outcomes shows that no accuracy was lost at all: all images are taken."""
    measure = Measured()
    found, result = run("tiny", "tiny", measure, first=210, n_samples=None, max_drop=0, **CLEAN)
    assert [plan.datasets for plan in measure.plans] == [SETS, ("emoji-travel",)]
    assert {c.dataset: c.n for c in result.cells} == {"emoji-food": 202, "emoji-travel": 240}
    assert found.cells[-1].n == 442


def test_a_result_of_a_part_is_a_base(good: Path, tmp_path: Path) -> None:
    _, part = run(str(good), BLIND)
    ResultFolder(tmp_path / "part").write(part, to_markdown(part))
    found = clipguard.compare(tmp_path / "part", "tiny", metrics=["clean"])
    assert found.differences == ()
    assert {cell.n for cell in found.cells} == {20}
    measure = Measured()
    again, _ = run(str(tmp_path / "part"), BLIND, measure, first=12)
    assert [plan.part for plan in measure.plans] == [(0, 12), (12, 18), (18, 20)]
    assert {(cell.n, cell.lost, cell.gained) for cell in again.cells[:2]} == {(20, 0, 0)}


def test_a_part_of_a_part_keeps_its_place() -> None:
    measure = Measured()
    inputs = read_inputs("tiny", "tiny", {"n_samples": 30, **CLEAN})
    assert inputs.plan is not None
    inputs = replace(inputs, plan=replace(inputs.plan, part=(10, 30)))
    _, result = compare_in_batches(inputs, Rules(), measure, 15, False, Silent())
    assert [plan.part for plan in measure.plans] == [(10, 25), (25, 30)]
    assert result.run["plan"]["part"] == [10, 30]


def test_batches_are_random_draws() -> None:
    data = clipguard.load_dataset("emoji-animals")
    chosen = data.subset(100, 0)
    order = in_random_order(chosen, 0)
    assert sorted(order.tolist()) == chosen.tolist()
    np.testing.assert_array_equal(order, in_random_order(chosen, 0))
    assert order.tolist() != in_random_order(chosen, 1).tolist()
    firsts = [in_random_order(np.arange(10), seed)[0] for seed in range(300)]
    assert np.bincount(firsts, minlength=10).min() >= 12  # of 30 expected


def test_a_part_without_images_is_refused() -> None:
    with pytest.raises(DatasetError, match="emoji-food has 30 images to evaluate, none from 30 on"):
        clipguard.bench(["tiny"], n_samples=30, part=(30, 40), **CLEAN)
    with pytest.raises(ClipguardError, match="the first below the second"):
        clipguard.bench(["tiny"], n_samples=30, part=(3, 3), **CLEAN)


@pytest.mark.parametrize(
    ("first", "most", "ends"),
    [(50, 200, [50, 75, 113, 170, 200]), (1, 4, [1, 2, 3, 4]), (50, 50, [50]), (50, 12, [12])],
)
def test_batches_grow(first: int, most: int, ends: list[int]) -> None:
    assert list(batch_ends(first, most)) == ends


def test_what_makes_no_batches_is_refused(good: Path) -> None:
    with pytest.raises(ResultError, match="`sequential` is for models to bench"):
        run(str(good), str(good))
    with pytest.raises(ClipguardError, match="`first` must be at least 1, not 0"):
        run("tiny", BLIND, first=0, **CLEAN)


def test_what_is_not_alike_is_refused_after_the_first_batch(good: Path, tmp_path: Path) -> None:
    content = json.loads((good / "results.json").read_text())
    content["run"]["datasets"]["emoji-food"]["fingerprint"] = "0" * 64
    (tmp_path / "results.json").write_text(json.dumps(content))
    (tmp_path / "samples.parquet").write_bytes((good / "samples.parquet").read_bytes())
    measure = Measured()
    with pytest.raises(ResultError, match="emoji-food has other data"):
        run(str(tmp_path), "tiny", measure)
    assert len(measure.plans) == 1


def test_from_python(good: Path) -> None:
    found = clipguard.compare(good, BLIND, sequential=True, first=20)
    assert found.verdict == "regression"
    assert found.sequential is not None
    assert clipguard.compare(good, good).sequential is None
