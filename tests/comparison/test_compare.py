"""Comparisons of two results: what is paired, what is called a regression, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import BLIND

import clipguard
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results.folder import ResultFolder
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import to_markdown
from clipguard.comparison.output import comparison_markdown, comparison_notes
from clipguard.comparison.paired_cells import compare_results
from clipguard.comparison.result import Comparison
from clipguard.comparison.rules import Rules
from clipguard.core.errors import ClipguardError, ResultError
from clipguard.statistics.paired import Pairs, holm, mcnemar_p_value, paired_interval, regression_p_value

OPTIONS: dict[str, Any] = {"n_samples": 12, "eps": ["2"], "attacks": ["pgd-2"]}
SETS = ["emoji-food", "emoji-travel"]


@pytest.fixture(scope="module")
def base() -> BenchResult:
    return clipguard.bench(["tiny"], SETS, **OPTIONS)


def outcome(base: BenchResult, changes: dict[tuple[str, str], tuple[int, int]], repeat: int = 1) -> BenchResult:
    """The result with some images of cells (data set, attack) lost and gained, and its rows repeated as new images."""
    result = copy.deepcopy(base)
    rows = result.samples.loc[result.samples.index.repeat(repeat)].copy()
    rows["index"] = np.arange(len(rows))
    for (dataset, attack), (lost, gained) in changes.items():
        cell = rows[(rows.dataset == dataset) & (rows.attack == attack)]
        assert cell.robust.sum() >= lost
        assert (~cell.robust).sum() >= gained
        for right, count in ((True, lost), (False, gained)):
            chosen = cell["index"][cell.robust == right].head(count)
            rows.loc[rows["index"].isin(chosen), "robust"] = not right
    other = BenchResult(result.run)
    other.add(rows)
    return other


def compare(base: BenchResult, candidate: BenchResult, **rules: Any) -> Comparison:
    return compare_results(base, candidate, Rules(**rules))


def test_a_cell_holds_the_paired_statistics(base: BenchResult) -> None:
    before = outcome(base, {}, 20)
    after = outcome(base, {("emoji-food", "none"): (30, 4)}, 20)
    found = compare(before, after, metrics=("clean",))
    food, travel = found.cells
    assert (food.dataset, food.attack, food.n, food.lost, food.gained) == ("emoji-food", "none", 240, 30, 4)
    assert food.change == pytest.approx(-26 / 240)
    assert food.base + food.change == pytest.approx(food.candidate)
    pairs = [Pairs(240, 30, 4)]
    assert (food.ci_low, food.ci_high) == paired_interval(pairs)
    assert food.p_mcnemar == mcnemar_p_value(30, 4)
    assert [food.p_regression, travel.p_regression] == holm([regression_p_value(pairs, 0.01), 1.0])
    assert (food.verdict, found.verdict) == ("regression", "regression")
    assert [c.dataset for c in found.failed()] == ["emoji-food"]


def test_averages_weigh_data_sets_alike(base: BenchResult) -> None:
    after = outcome(base, {("emoji-food", "none"): (3, 0), ("emoji-travel", "none"): (1, 2)})
    (clean, attacked) = compare(outcome(base, {}), after, metrics=("average",)).cells
    assert (clean.dataset, clean.n, clean.lost, clean.gained) == ("average", 24, 4, 2)
    assert clean.change == pytest.approx((-3 / 12 + 1 / 12) / 2)
    assert attacked.change == 0


def test_metrics_choose_cells(base: BenchResult) -> None:
    def kinds(*metrics: str) -> list[tuple[str, str]]:
        return [(c.dataset, c.attack) for c in compare(base, base, metrics=metrics).cells]

    assert kinds("clean") == [(name, "none") for name in SETS]
    assert kinds("robust") == [(name, "pgd-2") for name in SETS]
    assert kinds("average") == [("average", "none"), ("average", "pgd-2")]
    assert len(kinds("clean", "robust", "average")) == 6


def test_verdicts_depend_on_the_number_of_images(base: BenchResult) -> None:
    few = compare(base, base, metrics=("clean",))
    assert few.verdict == "inconclusive"
    assert {c.n_to_decide for c in few.cells} == {268}  # the score test: n > 0.99 / 0.01 * 1.645^2
    many = outcome(base, {}, 23)  # 276 images
    assert compare(many, many, metrics=("clean",)).verdict == "no regression"


def test_the_number_that_would_decide_does_decide(base: BenchResult) -> None:
    lost = {("emoji-food", "none"): (3, 1)}
    rules = {"metrics": ("clean",), "max_drop": 1.0}
    (food, _) = compare(outcome(base, {}, 5), outcome(base, lost, 5), **rules).cells
    assert food.verdict == "inconclusive"
    assert food.n_to_decide is not None
    repeat = -(-food.n_to_decide // 60)
    more = {("emoji-food", "none"): (3 * repeat, 1 * repeat)}
    (food, _) = compare(outcome(base, {}, 5 * repeat), outcome(base, more, 5 * repeat), **rules).cells
    assert food.verdict == "regression"


def test_the_detectable_drop_is_the_smallest_that_is_called(base: BenchResult) -> None:
    before = outcome(base, {}, 5)
    (food, _) = compare(before, before, metrics=("clean",)).cells
    assert food.detectable_drop is not None
    images = round(food.detectable_drop * 60)
    for lost, verdict in ((images, "regression"), (images - 1, "inconclusive")):
        after = outcome(base, {("emoji-food", "none"): (lost, 0)}, 5)
        assert compare(before, after, metrics=("clean",)).cells[0].verdict == verdict


def test_any_drop_needs_no_test(base: BenchResult) -> None:
    found = compare(outcome(base, {}), outcome(base, {("emoji-food", "none"): (1, 0)}), metrics=("clean",))
    assert found.failed("regression") == []
    assert [c.dataset for c in found.failed("any-drop")] == ["emoji-food"]
    assert len(found.failed("inconclusive")) == 2
    allowed = compare(
        outcome(base, {}), outcome(base, {("emoji-food", "none"): (3, 0)}), metrics=("clean",), max_drop=25
    )
    assert allowed.failed("any-drop") == []  # 25 points exactly: not more than allowed


@pytest.mark.parametrize("rules", [{"max_drop": -1}, {"alpha": 0.0}, {"alpha": 0.6}, {"metrics": ("robst",)}])
def test_rules_that_make_no_test_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ClipguardError, match="`"):
        Rules(**rules)


def set_run(name: str, value: Any) -> Callable[[BenchResult], None]:
    return lambda result: result.run.update({name: value})


def set_data(name: str, value: Any) -> Callable[[BenchResult], None]:
    return lambda result: result.run["datasets"]["emoji-food"].update({name: value})


REFUSED: dict[str, tuple[Callable[[BenchResult], None], str]] = {
    "norm": (set_run("norm", "l2"), "norm is linf in BASE and l2 in CANDIDATE"),
    "eps mode": (set_run("eps_mode", "nested"), "eps_mode is ascending in BASE and nested"),
    "quantize": (set_run("quantize", True), "quantize is False in BASE and True"),
    "resolution": (set_run("resolution", "native"), "resolution is model in BASE and native"),
    "resize": (set_run("resize", "crop256"), "resize is model in BASE and crop256"),
    "logit scale": (set_run("logit_scale", 100.0), "logit_scale is model in BASE and 100.0"),
    "spelling": (set_run("class_names", "tecoa"), "class_names is source in BASE and tecoa"),
    "engine": (set_run("engine", "reference"), "engine is clipguard in BASE and reference"),
    "protocol": (set_run("protocol", {"name": "fare", "overrides": {}}), "protocol is none in BASE and fare"),
    "images": (set_data("indices", [1, 2]), "emoji-food has other images"),
    "class names": (set_data("class_names", ["a", "b"]), "emoji-food has other class names"),
    "templates": (set_data("templates", ["a {}"]), "emoji-food has other templates"),
    "pixels": (set_data("fingerprint", "0" * 64), "emoji-food has other data"),
    "attack": (lambda result: result.run["attacks"].update({"pgd-2": {"stages": []}}), "attack pgd-2 has other"),
}


@pytest.mark.parametrize(("change", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_alike_is_refused_unless_forced(
    base: BenchResult, change: Callable[[BenchResult], None], why: str
) -> None:
    other = copy.deepcopy(base)
    change(other)
    with pytest.raises(ResultError, match=f"Not comparable: {why}.*`force`"):
        compare_results(base, other, Rules())
    forced = compare_results(base, other, Rules(), force=True)
    assert len(forced.differences) == 1
    assert why in forced.differences[0]
    assert "FORCED" in "".join(comparison_notes(forced))


def test_cells_that_only_one_has_are_named(base: BenchResult) -> None:
    less = BenchResult(base.run)
    less.add(base.samples[(base.samples.dataset == "emoji-food") & (base.samples.attack == "none")])
    with pytest.raises(ResultError, match=r"only BASE has emoji-food pgd-2 at eps 2, emoji-travel clean"):
        compare_results(base, less, Rules())
    with pytest.raises(ResultError, match="only CANDIDATE has"):
        compare_results(less, base, Rules())
    assert len(compare_results(base, less, Rules(), force=True).cells) == 1
    with pytest.raises(ResultError, match="share no image"):
        compare_results(base, less, Rules(metrics=("robust",)), force=True)


def test_a_result_of_two_models_or_none_is_refused(base: BenchResult) -> None:
    two = copy.deepcopy(base)
    two.add(base.samples.assign(model="other"))
    with pytest.raises(ResultError, match="BASE has results of other, tiny"):
        compare_results(two, base, Rules())
    with pytest.raises(ResultError, match="CANDIDATE has no finished cell"):
        compare_results(base, BenchResult(base.run), Rules())


def test_results_are_read_back_as_they_were_written(base: BenchResult, tmp_path: Path) -> None:
    ResultFolder(tmp_path / "r").write(base, to_markdown(base))
    for path in (tmp_path / "r", tmp_path / "r" / "results.json"):
        found = BenchResult.load(path)
        assert found.to_json() == base.to_json()
        assert found.samples.equals(base.samples)


def _swap_samples(folder: Path, base: BenchResult) -> None:
    other = outcome(base, {("emoji-food", "none"): (1, 0)})
    other.samples.to_parquet(folder / "samples.parquet")


DAMAGE: dict[str, tuple[Callable[[Path, BenchResult], object], str]] = {
    "not JSON": (lambda folder, _: (folder / "results.json").write_text("{"), "cannot be read"),
    "half a file": (lambda folder, _: (folder / "results.json").write_text('{"schema": 1, "run": {}}'), "no result of"),
    "another schema": (lambda folder, _: (folder / "results.json").write_text('{"schema": 0}'), "schema 1"),
    "no samples": (lambda folder, _: (folder / "samples.parquet").unlink(), "belongs beside results.json"),
    "cut samples": (lambda folder, _: (folder / "samples.parquet").write_bytes(b"PAR1"), "belongs beside"),
    "samples of another run": (_swap_samples, "not of one run"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_results_are_refused(
    base: BenchResult, tmp_path: Path, damage: Callable[[Path, BenchResult], object], why: str
) -> None:
    ResultFolder(tmp_path / "r").write(base, to_markdown(base))
    damage(tmp_path / "r", base)
    with pytest.raises(ResultError, match=why):
        BenchResult.load(tmp_path / "r")


def test_plans_survive_json(tmp_path: Path) -> None:
    plan = make_plan(["other"], ["emoji-food"], protocol="fare", eps=["1,2.5"], classes=tmp_path)
    kept = json.loads(json.dumps(plan.to_dict()))
    again = BenchPlan.from_dict(kept, ["other"])
    assert again.to_dict() == kept
    assert replace(again, overrides={}) == replace(plan, overrides={})
    assert [radius.typed for radius in again.eps] == [1.0, 2.5]


def test_a_model_is_benched_like_the_result_beside_it(base: BenchResult, tmp_path: Path) -> None:
    ResultFolder(tmp_path / "r").write(base, to_markdown(base))
    found = clipguard.compare(tmp_path / "r", "tiny")
    assert found.differences == ()
    assert {(c.dataset, c.attack, c.eps, c.lost, c.gained) for c in found.cells} >= {("emoji-travel", "pgd-2", 2, 0, 0)}
    worse = clipguard.compare(tmp_path / "r", BLIND, metrics=["clean"])
    assert worse.candidate == BLIND
    assert worse.verdict == "regression"
    assert "**regression**" in comparison_markdown(worse)
    assert json.loads(worse.to_json())["models"]["candidate"]["mean"] == [9.0, 9.0, 9.0]


def test_two_models_are_benched_in_one_run() -> None:
    found = clipguard.compare("tiny", "tiny#normalization=imagenet", datasets=["emoji-food"], **OPTIONS)
    assert (found.base, found.candidate) == ("tiny", "tiny#normalization=imagenet")
    assert [c.attack for c in found.cells] == ["none", "pgd-2"]
    same = clipguard.compare("tiny", "tiny", datasets=["emoji-food"], n_samples=4, attacks=["none"])
    assert same.cells[0].change == 0


def test_results_of_an_older_clipguard(base: BenchResult, tmp_path: Path) -> None:
    older = copy.deepcopy(base)
    del older.run["plan"], older.run["resize"]
    for name in ("a", "b"):
        ResultFolder(tmp_path / name).write(older, to_markdown(older))
    assert clipguard.compare(tmp_path / "a", tmp_path / "b").differences == ()
    with pytest.raises(ResultError, match="BASE is of an older clipguard"):
        clipguard.compare(tmp_path / "a", "tiny")
    with pytest.raises(ResultError, match="resize is none in BASE and model in CANDIDATE"):
        compare_results(older, base, Rules())


def test_options_for_what_is_measured_are_refused(base: BenchResult, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    ResultFolder(folder).write(base, to_markdown(base))
    with pytest.raises(ResultError, match="`datasets` is for models to bench; BASE is measured"):
        clipguard.compare(folder, "tiny", datasets=["emoji-food"])
    with pytest.raises(ResultError, match="`device` is for models to bench; BASE and CANDIDATE are measured"):
        clipguard.compare(folder, folder, device="cpu")
    assert clipguard.compare(folder, "tiny", device="cpu", batch_size=5).differences == ()
