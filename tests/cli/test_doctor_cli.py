"""`clipguard doctor`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clipguard
from clipguard.cli import run
from clipguard.sanity.checks import CHECKS
from clipguard.sanity.predictions import PREDICTION_CHECKS

FAST = ["-q", "doctor", "-d", "emoji-food", "-n", "6", "--eps", "8", "--attack"]
DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


@pytest.mark.usefixtures("short_square")
def test_a_quiet_diagnosis_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FAST, "pgd-5", "--transfer-from", "tiny", "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [f["id"] for f in content["findings"]] == list(CHECKS)
    quiet = {f["verdict"] for f in content["findings"] if f["id"] not in PREDICTION_CHECKS}
    assert quiet == {"ok"}, content["findings"]  # six images are too few for some of the others
    assert content["verdict"] in ("ok", "not checked")
    assert content["run"]["transfer_from"] == "tiny"
    assert len(content["run"]["examined"]) == 6


@pytest.mark.usefixtures("short_square")
def test_a_failure_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FAST, "pgd-2", "--logit-scale", "1e6"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "saturation failure" in out
    assert "→ Use attacks on scale-free losses" in out
    assert out.endswith("2 failure. docs/doctor.md explains every check.")


@pytest.mark.slow
def test_quiet_on_an_adversarially_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clipguard.finetune("tecoa", out=tmp_path / "tuned", steps=60, eps=4)
    tuned = f"local-dir:{tmp_path / 'tuned'}"
    assert run(["-q", "doctor", "-m", tuned, "--attack", "apgd-ce", "--transfer-from", "tiny", "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"] == "ok", content["findings"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none"], "examines an attack"),
        (["pgd-2", "--eps", "4,8"], "one --eps"),
        (["pgd-2", "-d", "emoji-travel"], "takes one"),
        (["pgd-2", "--transfer-from", "no-such:thing"], "no-such"),
        (["pgd-two"], "pgd-two"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FAST, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_the_docs_explain_every_check() -> None:
    headings = [line.removeprefix("### ") for line in DOCS.read_text().splitlines() if line.startswith("### ")]
    assert headings == list(CHECKS)
