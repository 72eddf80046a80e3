"""What a fine-tuning run would take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clipguard.cli import run
from clipguard.core.errors import FinetuneError
from clipguard.core.records.provenance import Machine
from clipguard.finetuning.planning import TrainingEstimate, plan_finetune
from clipguard.finetuning.settings import resolve

SMALL = {"method": "tecoa", "steps": 5, "batch_size": 8, "n_samples": 60, "eval_samples": 8, "device": "cpu"}


def test_steps_are_timed_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    estimate = plan_finetune(resolve({**SMALL, "eval_every": 2, "ema": 0.9}))
    assert (estimate.steps, estimate.images_per_step, estimate.validations) == (5, 8, 3)
    assert estimate.steps_per_second > 0
    assert estimate.validation_seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_what_it_costs() -> None:
    machine: Machine = {"platform": "p", "device": "cpu", "threads": 1}
    estimate = TrainingEstimate(100, 8, 2.0, 5, 4.0, 10.0, {"host": 1.0, "gpu": None}, machine, 3.6)
    assert estimate.training_seconds == 50
    assert estimate.seconds == 10 + 50 + 5 * 4
    assert estimate.cost == pytest.approx(0.08)
    assert replace(estimate, price=None).cost is None
    assert json.loads(estimate.to_json())["cost"] == 0.08


def test_one_process_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FinetuneError, match="one process"):
        plan_finetune(resolve(SMALL))


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "fare", "--steps", "1", "--batch-size", "8", "--n-samples", "60", "--eval-samples", "8"]
    assert run(["-q", "finetune", "--plan", *words, "--price", "2"]) == 0
    out = capsys.readouterr().out
    assert "1 steps of 8 images" in out
    assert "Cost at 2 an hour" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan", "--out", "x"], "leave out --out"),
        (["--price", "1"], "add --plan"),
        (["--plan", "--price", "-1"], "--price must be"),
        (["--plan", "--method", "no-such"], "no-such"),
        (["--plan", "--resume", "x"], "leave out --plan"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
