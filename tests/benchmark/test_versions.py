"""Files of a newer clipguard are refused in one line that says so; those of an older one are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipguard
from clipguard.benchmark.results.result import BenchResult
from clipguard.cli import run
from clipguard.core.errors import ClipguardError
from clipguard.finetuning.config import FinetuneConfig

BASELINE = Path(clipguard.__file__).parents[1] / "benchmarks" / "results" / "baseline"
Edit = Callable[[dict[str, Any]], Any]


def edited(source: Path, edit: Edit) -> Path:
    """The file, changed as another version would have written it."""
    content = json.loads(source.read_text())
    edit(content)
    source.write_text(json.dumps(content))
    return source.parent


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A committed result of an older clipguard: it has no findings of predictions, and no `probes`."""
    return shutil.copytree(BASELINE, tmp_path / "result")


def refused(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert run(["-q", *words]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert "pdate clipguard" in err


NEWER_PLAN = "of a newer clipguard: its plan has teleport"


def test_a_newer_plan_cannot_be_benched_again(result: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edited(result / "results.json", lambda c: c["run"]["plan"].update(teleport=1))
    refused(["compare", str(result), "tiny", "--no-store"], NEWER_PLAN, capfd)


def test_a_report_of_a_newer_plan_says_why_it_has_no_command(result: Path, tmp_path: Path) -> None:
    edited(result / "results.json", lambda c: c["run"]["plan"].update(teleport=1))
    page = tmp_path / "r.html"
    assert run(["-q", "report", str(result), "--out", str(page), "--gallery", "1"]) == 0
    assert page.read_text().count(NEWER_PLAN) == 2  # of the command, and of the gallery


@pytest.mark.parametrize("command", [["report"], ["compare", "tiny"]])
def test_a_newer_schema_is_not_guessed_at(command: list[str], result: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edited(result / "results.json", lambda c: c.update(schema=2))
    refused([*command, str(result)], "of a newer clipguard (schema 2, not 1)", capfd)


def test_a_plan_without_later_fields_is_an_older_one(tmp_path: Path) -> None:
    few = ["-d", "emoji-food", "-n", "6", "--attack", "pgd-2", "--eps", "1,4", "--no-store", "--no-probes"]
    assert run(["-q", "bench", *few, "--out", str(tmp_path / "result")]) == 0
    later = {"part", "text", "class_names", "duplicate_names", "resize"}
    assert later & set(BenchResult.load(tmp_path / "result").run["plan"])
    older = edited(tmp_path / "result" / "results.json", lambda c: [c["run"]["plan"].pop(n, None) for n in later])
    found = clipguard.compare(older, "tiny", metrics=["clean"])
    assert found.differences == ()


def test_images_of_a_newer_clipguard(result: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "images"
    assert run(["-q", "attack", "-d", "emoji-food", "--attack", "fgsm", "-n", "2", "--out", str(out)]) == 0
    edited(out / "run.json", lambda c: c.update(schema=2))
    refused(["report", str(result), str(out), "--out", str(tmp_path / "r.html")], "of a newer clipguard", capfd)


def test_a_store_of_a_newer_clipguard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store.json").write_text('{"format": 2}')
    refused(["store", "ls", "--store", str(tmp_path)], "of a newer clipguard", capfd)
    bench = ["bench", "-d", "emoji-food", "-n", "2", "--store", str(tmp_path), "--out", str(tmp_path / "out")]
    refused(bench, "of a newer clipguard", capfd)


@pytest.mark.parametrize("edit", [lambda c: c.update(schema=2), lambda c: c["config"].update(teleport=1)])
def test_a_training_run_of_a_newer_clipguard(edit: Edit, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_file = {"schema": 1, "complete": False, "command": "", "config": FinetuneConfig().to_dict()}
    (tmp_path / "run.json").write_text(json.dumps(run_file))
    before = edited(tmp_path / "run.json", edit) / "run.json"
    content = before.read_bytes()
    refused(["finetune", "--resume", str(tmp_path)], "of a newer clipguard", capfd)
    assert before.read_bytes() == content


def test_settings_that_an_older_clipguard_did_not_have_are_at_their_defaults() -> None:
    values = FinetuneConfig(seed=3).to_dict()
    del values["tracker"]
    assert FinetuneConfig.from_dict(values) == FinetuneConfig(seed=3)
    with pytest.raises(ClipguardError, match="newer clipguard: it has teleport"):
        FinetuneConfig.from_dict({**values, "teleport": 1})
