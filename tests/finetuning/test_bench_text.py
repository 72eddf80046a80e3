"""`clipguard bench --text`: the same image tower with tuned and with original text, recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from text_models import write_export

import clipguard
from clipguard.cli import run
from clipguard.finetuning.tuned.class_text import ClassText
from clipguard.models.text.tuned import ORIGINAL_FILE

BENCH = ["bench", "-d", "emoji-food", "--attack", "none", "-n", "30", "--format", "json", "--no-store"]
TINY = Path(clipguard.__file__).parent / "assets" / "models" / "tiny"


def accuracy(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[float, dict[str, object], str]:
    """Clean accuracy, provenance and log of a run."""
    assert run([*BENCH, *arguments]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    return result["cells"][0]["accuracy"], result["run"], " ".join(err.split())


def test_bench_scores_tuned_or_original_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded, data = clipguard.load_model("tiny"), clipguard.load_dataset("emoji-food")
    side = ClassText(loaded, data.class_names, data.templates, "head")
    (weight,) = side.tuned_parameters()
    torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))  # ruins the text
    write_export(tmp_path / "ruined", TINY, loaded, side.export(loaded.model))

    plain, _, _ = accuracy(["-m", "tiny", "-o", "a"], capfd)
    tuned, tuned_run, tuned_log = accuracy(["-m", "local-dir:ruined", "-o", "b"], capfd)
    original, original_run, original_log = accuracy(["-m", "local-dir:ruined", "--text", "original", "-o", "c"], capfd)
    assert original == plain
    assert tuned < plain - 0.1
    assert (tuned_run["text"], original_run["text"]) == ("tuned", "original")
    assert original_run["models"]["local-dir:ruined"]["text"] == f"original, from {ORIGINAL_FILE}"  # type: ignore[index]
    assert "text tuned, in the weights" in tuned_log
    assert f"text original, from {ORIGINAL_FILE}" in original_log


def test_original_text_of_an_untuned_model_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*BENCH, "--text", "original"]) == 2
    assert "Error: tiny has no original text beside its own" in capfd.readouterr().err
    assert run([*BENCH, "--text", "older"]) == 2
    assert "'older'" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
