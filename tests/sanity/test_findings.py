"""Sanity checks of a bench run, from its rows and its probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

import clipguard
from clipguard.attacks.recipes import parse_recipe
from clipguard.benchmark.checks.findings import pick_images, with_prompts
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import to_markdown
from clipguard.core.records.samples import sample_frame
from clipguard.models.preprocessing import to_native_pixels
from clipguard.sanity.checks import Finding
from clipguard.sanity.entries import finding_lines
from clipguard.sanity.predictions import PREDICTION_CHECKS
from clipguard.sanity.rows import ROW_CHECKS, row_findings

SUITE = "apgd-ce+square"
PROBES = ("train-mode", "finite", "probabilities", "randomised", "duplicate-classes", "gradients", "saturation")


def row(index: int, eps: float, broken_by: str | None, attack: str = SUITE, **change: Any) -> dict[str, Any]:
    """A row as a run writes it: label 0, and class 1 once broken."""
    robust = broken_by is None
    base = {"model": "m", "dataset": "d", "norm": "linf", "index": index, "label": 0, "eps": eps, "attack": attack}
    fate = {"clean_pred": 0, "adv_pred": int(not robust), "robust": robust, "broken_by": broken_by}
    return base | fate | {"distance": 0.0 if robust else eps, "margin": 1.0 if robust else -1.0} | change


def findings(
    rows: Sequence[dict[str, Any]], n: int = 20, attacks: Sequence[str] = (SUITE,), norm: str = "linf"
) -> dict[str, Finding]:
    """Those of a run with n images right when clean, and these rows."""
    clean = [row(i, 0.0, None, "none") for i in range(n)]
    recipes = [parse_recipe(attack) for attack in attacks]
    found = row_findings(sample_frame([*clean, *rows]), recipes, norm)
    assert tuple(f.id for f in found) == ROW_CHECKS
    return {f.id: f for f in found}


def at(eps: float, broken: int, by: str = "apgd-ce", n: int = 20, attack: str = SUITE) -> list[dict[str, Any]]:
    """A cell: the first so many images broken."""
    return [row(i, eps, by if i < broken else None, attack) for i in range(n)]


def test_honest_rows_are_quiet() -> None:
    found = findings([*at(0.0, 0), *at(4.0, 5), *at(128.0, 20)])
    assert {f.verdict for f in found.values()} == {"ok"}, found


def test_eps_zero() -> None:
    assert findings([*at(0.0, 1), *at(4.0, 5)])["eps-zero"].verdict == "failure"
    assert findings(at(4.0, 5))["eps-zero"].verdict == "not checked"


def test_eps_order() -> None:
    found = findings([*at(4.0, 5), *at(8.0, 4)])["eps-order"]
    assert (found.verdict, found.numbers["bad"]) == ("failure", 1)
    assert findings(at(4.0, 5))["eps-order"].verdict == "not checked"


def test_large_eps() -> None:
    assert findings(at(128.0, 1))["large-eps"].verdict == "failure"
    assert findings(at(128.0, 19))["large-eps"].verdict == "ok"
    assert findings(at(8.0, 1))["large-eps"].verdict == "not checked"


def test_square_after_gradients() -> None:
    assert findings(at(4.0, 1, "square"))["black-box"].verdict == "ok"
    assert findings(at(4.0, 8, "square"))["black-box"].verdict == "failure"
    assert findings(at(4.0, 8), attacks=[SUITE])["black-box"].verdict == "ok"


def test_square_is_only_blamed_for_what_gradients_had_tried() -> None:
    first = "square+apgd-ce"
    assert findings(at(4.0, 8, "square", attack=first), attacks=[first])["black-box"].numbers["bad"] == 0
    # carried to 8/255 from 4/255, where gradients of another recipe failed: one image, once
    both = [*at(4.0, 8, "square", attack="square"), *at(8.0, 8, "square", attack="square")]
    assert findings(both, attacks=["square"])["black-box"].verdict == "not checked"
    weak = [*both, *at(4.0, 2, "pgd-1", attack="pgd-1"), *at(8.0, 8, "pgd-1", attack="pgd-1")]
    assert findings(weak, attacks=["square", "pgd-1"])["black-box"].numbers["bad"] == 6


@pytest.mark.parametrize("change", [{"adv_pred": 0}, {"distance": 4.1}, {"margin": 0.5}, {"margin": float("nan")}])
def test_a_success_that_is_none(change: dict[str, Any]) -> None:
    rows = [row(0, 4.0, "apgd-ce", **change), *at(4.0, 5)[1:]]
    assert findings(rows)["silent-success"].verdict == "failure"


def test_no_image_that_is_right() -> None:
    wrong = row(0, 0.0, "clean", "none", clean_pred=1)
    found = row_findings(sample_frame([wrong, row(0, 4.0, "clean", clean_pred=1)]), [parse_recipe(SUITE)], "linf")
    assert {f.verdict for f in found} == {"not checked"}


def test_prompts_that_are_there_twice() -> None:
    finding = Finding("duplicate-classes", "ok", "0 of 9 classes")
    assert with_prompts(finding, ["a {}", "b {}"]) is finding
    assert with_prompts(finding, ["a {}", "b {}", "a {}"]).verdict == "warning"


def test_images_are_spread_over_the_set() -> None:
    data = clipguard.load_dataset("emoji-food")
    indices = data.subset(None, 0)
    chosen, pixels = pick_images(data.image, to_native_pixels, indices, 3)
    assert chosen.tolist() == [indices[0], indices[round((len(indices) - 1) / 2)], indices[-1]]
    assert len(pixels) == 3
    assert pick_images(data.image, to_native_pixels, indices[:2], 16)[0].tolist() == indices[:2].tolist()


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return clipguard.bench(["tiny"], ["emoji-food"], ["0,4"], ["pgd-3", "square(queries=5)"], n_samples=20)


def test_every_bench_has_findings(result: BenchResult) -> None:
    (entry,) = result.run["findings"]
    assert (entry["model"], entry["dataset"]) == ("tiny", "emoji-food")
    assert [f["id"] for f in entry["findings"]] == [*PREDICTION_CHECKS, *PROBES, "loss-increase", *ROW_CHECKS]
    assert {f["id"] for f in entry["findings"] if f["verdict"] != "ok"} == {"large-eps"}
    (line,) = finding_lines(result.run["findings"])
    assert "15 ok, 1 not checked" in line
    assert line in to_markdown(result)


def test_findings_repeat_and_leave_the_numbers_alone(result: BenchResult) -> None:
    again = clipguard.bench(["tiny"], ["emoji-food"], ["0,4"], ["pgd-3", "square(queries=5)"], n_samples=20)
    assert again.run["findings"] == result.run["findings"]
    pd.testing.assert_frame_equal(again.samples, result.samples)


def test_a_bench_of_a_blinding_logit_scale_says_so() -> None:
    loud = clipguard.bench(["tiny"], ["emoji-food"], ["4"], ["pgd-2"], n_samples=20, logit_scale=1e6)
    lines = finding_lines(loud.run["findings"])
    assert lines[0].startswith("FAILURE saturation, tiny on emoji-food: ")
    assert "apgd-dlr" in lines[0]


def test_only_predictions_are_checked_where_nothing_is_attacked() -> None:
    clean = clipguard.bench(["tiny"], ["emoji-food"], ["4"], ["none"], n_samples=20)
    (entry,) = clean.run["findings"]
    assert [f["id"] for f in entry["findings"]] == list(PREDICTION_CHECKS)
    assert "WARNING" not in to_markdown(clean)
    assert "Sanity checks: 3 ok" in to_markdown(clean)
