"""Budgets of the wrong unit on the command line: each is refused with a cure, and the cure runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from clipguard.cli import run

DATA = ["-d", "emoji-food", "-n", "4", "--attack", "pgd-1"]
COMMANDS = {
    "bench": ["bench", *DATA, "--no-store"],
    "attack": ["attack", *DATA],
    "doctor": ["doctor", *DATA],
    "compare": ["compare", "tiny", "tiny#normalization=imagenet", *DATA, "--no-store"],
    "finetune": ["finetune", "--steps", "1"],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("typed", "meant"), [("0.0157", "4"), ("0.031", "8"), ("0.00392", "1"), ("3.1e-2", "8")])
@pytest.mark.parametrize("command", COMMANDS)
def test_pixels_are_refused_and_nothing_is_written(
    command: str, typed: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMANDS[command], "--eps", typed]) == 2
    error = capsys.readouterr().err
    assert f"--eps {typed}: did you mean {meant} ({meant}/255)?" in error
    assert f"write {typed}/255 if you mean it" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_l2_budget_in_255ths_is_refused_and_as_a_fraction_runs(capsys: pytest.CaptureFixture[str]) -> None:
    bench = [*COMMANDS["bench"], "--norm", "l2", "--format", "json"]
    assert run([*bench, "--eps", "128"]) == 2
    assert "did you mean 128/255 (0.502)?" in capsys.readouterr().err
    assert run([*bench, "--eps", "128/255,128/1"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["eps"] == [128 / 255, 128]


@pytest.mark.parametrize("typed", ["0.0157", "0.12549"])
def test_both_cures_run(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*COMMANDS["bench"], "--format", "json"]
    assert run([*command, "--eps", typed]) == 2
    cures = re.search(r"did you mean (\S+) .*; write (\S+) if", capsys.readouterr().err)
    assert cures is not None
    assert run([*command, "--eps", ",".join(cures.groups())]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["eps"] == [float(typed), float(cures[1])]


def test_the_table_shows_a_budget_that_was_insisted_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMANDS["bench"], "--format", "md", "--eps", "0.0157/255"]) == 0
    assert "eps 0.0157/255" in capsys.readouterr().out


@pytest.mark.parametrize("typed", ["0.5", "0.25", "0.125", "1/255", "4/255", "0"])
def test_small_budgets_that_make_sense_are_not_questioned(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", *COMMANDS["bench"], "--format", "json", "--eps", typed]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["eps"] == [float(typed.partition("/")[0])]
