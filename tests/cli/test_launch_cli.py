"""Several processes fine-tune together, into one folder; variables of a launch that is none are said."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Started
from racing import race

from clipguard.cli import run
from clipguard.finetuning.processes.launch import LAUNCH_VARIABLES
from clipguard.models.checkpoint.reader import hash_file

FINETUNE = ["finetune", "--method", "tecoa", "--steps", "2", "--batch-size", "2", "--attack-steps", "1"]
FINETUNE += ["--n-samples", "40", "--eval-samples", "4", "--device", "cpu", "--decoders", "0", "--eval-every", "1"]


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Whatever started the tests is not a launch of theirs."""
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(port: int, n: int = 2) -> list[dict[str, str]]:
    """The variables of torchrun, but for its own."""
    both = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [both | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]


def test_two_processes_share_a_folder_and_one_writes_and_tells(tmp_path: Path, port: int) -> None:
    (first, second), *_ = race(tmp_path, [FINETUNE, FINETUNE], environments=launch(port))
    assert (first.code, second.code) == (0, 0), (first, second)
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"local-dir:runs/{folder.name}" in first.out
    assert second.out == ""
    assert "INFO" not in second.err
    record = json.loads((folder / "run.json").read_text())
    assert record["complete"]
    assert record["resolved"]["processes"] == 2
    assert record["resolved"]["images_per_step"] == 2
    steps = [json.loads(line).get("step") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 1, 2, 2]  # a step and its validation, once
    assert record["sha256"] == hash_file(folder / "open_clip_model.safetensors")


def test_bad_input_and_a_taken_folder_are_told_once_and_end_all(tmp_path: Path, port: int) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    for more, why in {("--dataset", "nowhere/"): "nowhere", ("--out", "full"): "exists already"}.items():
        (ends,) = race(tmp_path, [[*FINETUNE, *more]] * 2, environments=launch(port))
        assert [end.code for end in ends] == [2, 2], ends
        assert [end.err.count("Error: ") for end in ends] == [1, 0], ends
        assert why in ends[0].err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "thesis.tex"]


@pytest.mark.slow
def test_torchrun_makes_one_folder(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clipguard"]
    done = subprocess.run([*line, *FINETUNE], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["complete"]
    assert done.stdout.count("local-dir:runs/") == 1
    bad = subprocess.run(
        [*line, *FINETUNE, "--eps", "-1"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert bad.stderr.count("Error: --eps") == 1


@pytest.mark.parametrize(
    ("left", "why"),
    [
        ({"RANK": "0"}, "1 other process is not there (RANK=0, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT="),
        ({"RANK": "1"}, "process 0 of 2 is not there (RANK=1, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT="),
        ({"RANK": "0", "MASTER_ADDR": ""}, "WORLD_SIZE=2 says that 2 processes train, but MASTER_ADDR is not set"),
        ({}, "WORLD_SIZE=2 says that 2 processes train, but RANK is not set"),
        ({"RANK": "2"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two is no number"),
        ({"WORLD_SIZE": "", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 says that 2 processes train"),
    ],
)
def test_variables_that_stayed_behind_are_said_with_their_cure(
    left: dict[str, str],
    why: str,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    values = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **left}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert run([*FINETUNE, "--rendezvous-timeout", "0.5"]) == 2
    err = capsys.readouterr().err
    (error,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert why in error
    assert ("After 0.5 s (--rendezvous-timeout)" in error) == ("is not there" in why)
    assert ("Waiting up to 0.5 s" in err) == ("is not there" in why)
    assert list(tmp_path.iterdir()) == []
    for name in error.partition("`unset ")[2].partition("`")[0].split():  # the cure
        monkeypatch.delenv(name)
    assert run(["-q", *FINETUNE, "--n-samples", "20", "--steps", "1", "--no-evaluation"]) == 0


def test_a_port_that_is_taken_is_named_and_one_process_needs_none(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", port))
        other.listen()
        for name, value in launch(port)[0].items():
            monkeypatch.setenv(name, value)
        assert run([*FINETUNE, "--rendezvous-timeout", "5"]) == 2
        assert f"MASTER_PORT={port} cannot be opened" in capsys.readouterr().err
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert run(["-q", *FINETUNE]) == 0
        assert os.environ["RANK"] == "0"  # as it was


def test_what_accelerate_would_read_changes_nothing_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["-q", *FINETUNE, "--out", "plain"]) == 0
    quiet = {"ACCELERATE_USE_CPU": "False", "ACCELERATE_DYNAMO_MODE": "default"}
    foreign = {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_DYNAMO_BACKEND": "inductor", **quiet}
    foreign |= {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "LOCAL_RANK": "1", "ACCELERATE_USE_FSDP": "true"}
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    assert run([*FINETUNE, "--out", "foreign"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "ACCELERATE_DYNAMO_BACKEND=inductor" in err
    assert "LOCAL_RANK=1: not read" in err
    assert "ACCELERATE_USE_CPU" not in err
    weights = [(tmp_path / name / "open_clip_model.safetensors").read_bytes() for name in ("plain", "foreign")]
    assert weights[0] == weights[1]
    notices = json.loads((tmp_path / "foreign" / "run.json").read_text())["notices"]
    assert [entry["kind"] for entry in notices if "not read" in entry["text"]] == ["skipped", "skipped"]


def test_waiting_ends_with_ctrl_c(port: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    process = Started(FINETUNE, tmp_path, tmp_path_factory.mktemp("streams") / "waiting", launch(port)[0])
    lines = process.lines()
    assert any("Waiting up to 60 s" in line for line in lines)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert list(lines)[-1] == "Interrupted.\n"
    assert list(tmp_path.iterdir()) == []
