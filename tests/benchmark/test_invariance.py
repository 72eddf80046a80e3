"""The self-test in a run: made once for a processor and model, kept, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import clipguard
from clipguard.attacks.engine.passes import batch_invariance as invariance
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import caption
from clipguard.benchmark.workers import batch_fill as benchmark
from clipguard.cli import run

FAST = {"datasets": ["emoji-food"], "attacks": ["pgd-2"], "eps": ["4"], "n_samples": 4, "device": "cpu", "store": None}
FAST |= {"batch_size": 8}


@pytest.fixture
def tests_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The batch sizes of the self-tests that are made from now on, with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[int] = []
    look = invariance._holds
    monkeypatch.setattr(invariance, "_holds", lambda e, x, *a, **k: made.append(len(x)) or look(e, x, *a, **k))
    return made


def measure(**options: Any) -> BenchResult:
    return clipguard.bench(**(FAST | options))  # type: ignore[arg-type]


def test_a_machine_is_tested_once_for_a_model_batch_size_and_precision(
    tests_made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = measure().run["batch_invariant"]["tiny"]
    assert set(answer) == {"holds", "fill"}
    once = len(tests_made)
    assert once
    assert measure(n_samples=5, datasets=["emoji-travel"]).run["batch_invariant"]["tiny"] == answer
    assert len(tests_made) == once
    measure(batch_size=20)
    assert tests_made[-1] == 20
    once = len(tests_made)
    monkeypatch.setenv("MKL_ANY", "1")  # may choose another kernel
    measure()
    assert len(tests_made) > once


def test_an_answer_that_cannot_be_read_or_kept_is_found_again(
    tests_made: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = measure().run["batch_invariant"]
    (kept,) = (tmp_path / "cache").rglob("*.json")
    content = json.loads(kept.read_text())
    assert {"small_rows": content["answer"]["small_rows"], **answer["tiny"]} == content["answer"]
    of_old = json.dumps(content | {"answer": answer["tiny"]})  # as the self-test before told it
    other = json.dumps(content | {"answer": content["answer"] | {"small_rows": 3}})
    for damaged in ("{", of_old, other):
        kept.write_text(damaged)
        made = len(tests_made)
        monkeypatch.setattr(benchmark, "_answers", {})  # as in another process
        assert measure().run["batch_invariant"] == answer
        assert len(tests_made) > made
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measure().run["batch_invariant"] == answer
    made = len(tests_made)
    assert measure().run["batch_invariant"] == answer  # but once in a process
    assert len(tests_made) == made


def test_a_run_whose_bytes_are_not_promised_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(invariance, "_holds", lambda *_, **__: False)
    monkeypatch.chdir(tmp_path)
    promised = measure(n_samples=12, store=None)
    assert promised.run["batch_invariant"]["tiny"] == {"holds": False, "fill": "alone"}
    assert "Last digits may depend on the batch" in caption(promised)
    command = ["bench", "-d", "emoji-food", "-a", "pgd-2", "--eps", "4", "-n", "12", "--device", "cpu", "--no-store"]
    assert run([*command, "--out", "out"]) == 0
    shown = capsys.readouterr()
    assert "batch_invariant" in " ".join(shown.err.split())
    assert "Last digits may depend on the batch" in " ".join(shown.out.split())
    monkeypatch.setattr(invariance, "_holds", lambda *_, **__: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    usual = measure(n_samples=12)
    assert "Last digits" not in caption(usual)
    outcomes = ["index", "eps", "clean_pred", "robust"]
    assert promised.samples[outcomes].equals(usual.samples[outcomes])
