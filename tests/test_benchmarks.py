"""The study that needs a GPU runs on a CPU, too, with less of everything, and the studies' page shows their results."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import clipguard

BENCHMARKS = Path(clipguard.__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not (BENCHMARKS / "gpu.py").is_file(), reason="the sdist has no studies")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def test_the_gpu_study_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the embedded model, without the suite whose 5,000 queries are counted for long."""
    options = "--device cpu --quick --models tiny --batch-sizes 2 --images 2 --limit 0.001 --suites autoattack-fast"
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options.split(), "--out", str(tmp_path)])
    monkeypatch.syspath_prepend(BENCHMARKS)
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    found = json.loads((tmp_path / "gpu.json").read_text())
    (rates,) = found["rates"]
    assert rates["forward"] > rates["gradient"] > 0
    assert [row["attack"] for row in found["attacks"]] == ["apgd-ce", "apgd-t", "fab-t", "square", "pgd-2"]
    assert [row["attack"] for row in found["reference"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for row in [*found["attacks"], *found["reference"]]:
        assert row["robust"] == [2]
        assert row["images_per_second"] > 0
        assert row["per_cent_of_the_device"] > 0
        assert row["gpu_utilization"] is None
    standing, falling = found["suites"]
    rates_of = {row["attack"]: row["passes_per_second"] for row in found["attacks"]}
    passes = {"apgd-ce": 101, "apgd-t": 909}  # of an image that stands
    assert standing["seconds"] == pytest.approx(2 * 3 * sum(n / rates_of[name] for name, n in passes.items()), abs=0.1)
    assert standing["how"] == "reckoned from passes"
    assert falling["robust"] == [0, 0, 0]
    assert falling["how"] == "reckoned from 1 images"
    assert "| tiny | float32, eager | apgd-ce(iterations=2) | 2 |" in (tmp_path / "gpu.md").read_text()


def test_what_does_not_fit_into_memory_is_null_with_the_reason(gpu: ModuleType) -> None:
    def too_large() -> dict[str, float]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    def broken() -> dict[str, float]:
        raise RuntimeError("shapes do not fit")

    assert gpu.guarded(too_large, {"gradient": None}) == {"gradient": None, "reason": "out of memory"}
    with pytest.raises(RuntimeError, match="shapes"):
        gpu.guarded(broken, {})


def test_the_page_shows_the_results_and_names_every_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python benchmarks/tables.py` writes its tables."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    tables = importlib.import_module("tables")
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert f"{tables.START}\n\n{tables.sections()}\n{tables.END}" in page
    names = {path.stem for path in BENCHMARKS.glob("*.py")} - {"common"}
    assert [name for name in sorted(names) if f"`{name}.py`" not in page] == []
    assert {step.script for step in importlib.import_module("run_all").STEPS} <= names
