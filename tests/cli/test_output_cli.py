"""Command lines that write to one place at the same moment, and runs that are stopped at any: docs/results.md."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from racing import Ended, race

from clipguard.cli import run

BENCH = ["bench", "-d", "emoji-food", "-a", "none", "-n", "6", "--device", "cpu"]
ATTACK = ["attack", "-a", "pgd-2", "-n", "2", "--device", "cpu"]
FINETUNE = ["finetune", "--steps", "1", "--batch-size", "2", "--attack-steps", "1", "--n-samples", "40"]
FINETUNE += ["--eval-samples", "4", "--device", "cpu", "--decoders", "0"]
FILES = {
    "bench": {"results.json", "results.csv", "results.md", "samples.parquet"},
    "attack": {"adversarial.safetensors", "samples.parquet", "grid.png", "run.json", "png"},
    "finetune": {"open_clip_model.safetensors", "open_clip_config.json", "README.md", "run.json", "metrics.jsonl"}
    | {"curves.png"},
    "convert": {"open_clip_model.safetensors", "open_clip_config.json", "README.md"},
    "merge": {"open_clip_model.safetensors", "open_clip_config.json", "README.md"},
}
COMMANDS = {
    "bench": BENCH,
    "attack": ATTACK,
    "finetune": FINETUNE,
    "convert": ["convert", "tiny"],
    "merge": ["merge", "tiny", "tiny", "--alpha", "0.5"],
}


def one_wins(lines: list[list[str]], ends: list[Ended]) -> list[str]:
    """The command that got the place; all others ended with one line, and nothing was wrong."""
    assert sorted(end.code for end in ends) == [0] + [2] * (len(ends) - 1), ends
    for end in ends:
        if end.code:
            (line,) = [line for line in end.err.splitlines() if line.startswith("Error: ")]
            assert "exists already" in line or "under way (process" in line
            assert end.out == ""
        assert "Traceback" not in end.err
    return next(line for line, end in zip(lines, ends, strict=True) if end.code == 0)


NAMED = [[*COMMANDS[name], "--out", "same"] for name in ("bench", "attack", "finetune", "convert")] * 2
UNNAMED = [BENCH, BENCH, ATTACK, ATTACK]
EXPORTS = [["report", "run", "--gallery", "0", "--out", "one.csv"], ["store", "export", "--out", "one.csv"]] * 4


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Ended]]]:
    """A folder, and how commands ended that started there at the same moment."""
    folder = tmp_path_factory.mktemp("races")
    return folder, race(folder, NAMED, UNNAMED, [[*BENCH, "--out", "run"]], EXPORTS)


def test_of_eight_commands_that_name_one_folder_one_runs(races: tuple[Path, list[list[Ended]]]) -> None:
    winner = one_wins(NAMED, races[1][0])
    assert {path.name for path in (races[0] / "same").iterdir()} >= FILES[winner[0]]
    assert not [path for path in races[0].rglob("*") if path.name.endswith((".part", ".lock"))]


def test_without_a_name_each_has_its_own_folder_and_they_share_the_store(
    races: tuple[Path, list[list[Ended]]],
) -> None:
    folder, ends = races
    assert [end.code for end in ends[1]] == [0] * 4, ends
    folders = [path for path in (folder / "runs").iterdir() if path.name != "store"]
    found = [{path.name for path in folder.iterdir()} for folder in folders]
    assert sorted(found, key=len) == [FILES["bench"]] * 2 + [FILES["attack"]] * 2
    tables = {path.read_bytes() for path in folder.glob("runs/*/results.csv")}
    assert len(tables) == 1
    assert not (folder / "runs" / "store" / "damaged").exists()


def test_of_reports_and_exports_to_one_file_one_is_written(races: tuple[Path, list[list[Ended]]]) -> None:
    folder, ends = races
    winner = one_wins(EXPORTS, ends[3])
    text = (folder / "one.csv").read_text()
    assert text.startswith("<!doctype html>") if winner[0] == "report" else len(pd.read_csv(folder / "one.csv")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(combinations_with_replacement(COMMANDS, 2)), ids="+".join)
def test_every_pair_of_commands(pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [[*COMMANDS[name], "--out", "same"] for name in pair * 4]
    winner = one_wins(lines, race(tmp_path, lines)[0])
    assert run([*winner[:-1], str(tmp_path / "alone")]) == 0
    assert sorted(p.name for p in (tmp_path / "same").rglob("*")) == sorted(
        p.name for p in (tmp_path / "alone").rglob("*")
    )
    for name in ("open_clip_model.safetensors", "results.csv", "adversarial.safetensors"):
        if (tmp_path / "same" / name).exists():
            assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.slow
def test_without_a_name_eight_of_three_kinds_have_their_own_folders(tmp_path: Path) -> None:
    (ends,) = race(tmp_path, [BENCH, ATTACK, FINETUNE, BENCH, ATTACK, FINETUNE, BENCH, FINETUNE])
    assert [end.code for end in ends] == [0] * 8, ends
    assert len([path for path in (tmp_path / "runs").iterdir() if path.name != "store"]) == 8


def hold(folder: Path, taken: Any, end: Any) -> None:
    """Another run, in a process of its own."""
    from clipguard.finetuning.run import ResumedFolder

    with ResumedFolder(folder):
        taken.set()
        end.wait()


def test_an_interrupted_run_is_gone_on_with_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fork = multiprocessing.get_context("fork")
    folder, content = tmp_path / "run", {"complete": False, "config": {}, "command": ""}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(content))
    taken, end = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(folder, taken, end))
    process.start()
    taken.wait()
    assert run(["-q", "finetune", "--resume", str(folder)]) == 2
    assert f"--resume {folder} belongs to a run that is under way (process {process.pid})" in capsys.readouterr().err
    end.set()
    process.join()
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def stop(folder: Path, line: list[str], number: int, after: float) -> subprocess.CompletedProcess[str]:
    """A command that gets a signal after so many seconds."""

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore Ctrl-C

    process = subprocess.Popen(
        [sys.executable, "-m", "clipguard", *line], cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=heed,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(after)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    return subprocess.CompletedProcess(line, process.returncode, None, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_loads_it_leaves_nothing(number: int, tmp_path: Path) -> None:
    done = stop(tmp_path, [*BENCH, "--model", "tiny"], number, after=1.5 + random.random())
    if done.returncode == 0:
        pytest.skip("it was done before it could be stopped")
    # A shell sees 130 either way: in some C code's import, Python itself ends by the signal.
    assert done.returncode in (128 + number, -number, -signal.SIGINT), done.stderr
    assert done.stderr.splitlines()[-1] == ("Interrupted." if number == signal.SIGINT else "Terminated.")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench", "attack", "finetune"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_at_any_moment_it_stands_in_nobodys_way(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        done = stop(folder, [*COMMANDS[name], "--out", "run"], number, after=1 + attempt + random.random())
        if done.returncode == 0:
            continue
        assert "Traceback" not in done.stderr
        if number != signal.SIGKILL:
            assert not list(folder.rglob("*.part"))
            assert not list(folder.rglob("*.lock"))
        again = ["finetune", "--resume", str(folder / "run")]
        if not (folder / "run" / "run.json").exists() or name != "finetune":
            again = [*COMMANDS[name], "--out", str(folder / "run")]
        code = run(["-q", *again])
        assert code == 0 or (number == signal.SIGKILL and name == "attack")  # killed when it wrote its files
