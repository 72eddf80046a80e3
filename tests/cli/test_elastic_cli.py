"""Processes of a run that are killed: the others end with one line, and started again they end the run as meant."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Started
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from training_runs import write_images, write_vit

from clipguard.cli import run
from clipguard.finetuning.processes.launch import LAUNCH_VARIABLES
from clipguard.models.export import WEIGHTS_NAME

SETTINGS = ["finetune", "--method", "tima", "--preset", "none", "--steps", "40", "--batch-size", "6", "--eps", "8"]
SETTINGS += ["--attack-steps", "2", "--lr", "1e-3", "--save-every", "3", "--eval-every", "8", "--val-fraction", "0.2"]
SETTINGS += ["--ema", "0.9", "--augment", "standard", "--device", "cpu", "--model", "local-dir:vit", "--dataset", "d"]
MORE = ["--steps", "100000"]
Starts = list[Started]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and images; what started the tests is not a launch of theirs."""
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_vit(tmp_path / "vit")
    write_images(tmp_path / "d")
    return tmp_path


@pytest.fixture
def launcher() -> TCPStore:
    """The store of a launcher, through which the processes meet."""
    return TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


def start(line: list[str], store: TCPStore, folder: Path, n: int = 2, attempt: int = 0) -> Starts:
    """The processes of a launch, as torchrun starts them."""
    all_of_them = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    all_of_them |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": attempt}
    all_of_them |= {"TORCHELASTIC_RUN_ID": "test"}
    variables = [{name: str(v) for name, v in {**all_of_them, "RANK": i, "LOCAL_RANK": i}.items()} for i in range(n)]
    return [Started(line, folder, folder / f"{attempt}-{i}", environment) for i, environment in enumerate(variables)]


def wait_for_steps(out: Path, steps: int, started: Starts) -> None:
    """Until a checkpoint of at least so many steps is there."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert all(one.process.exitcode is None for one in started), [one.err.read_text() for one in started]
        if any(int(path.stem.split("-")[1]) >= steps for path in out.glob("checkpoints/step-*.pt")):
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of {steps} steps in {out}")


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_started_again_after_a_kill_the_run_ends_bit_identical(rank: int, launcher: TCPStore, place: Path) -> None:
    """In the folder that it had, whose name no command line says."""
    line = [*SETTINGS, "--no-evaluation"]
    assert [one.wait(200) for one in start([*line, "--out", "whole"], launcher, place, attempt=9)] == [0, 0]
    other = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    first = start(line, other, place)
    while not (folders := list(place.glob("runs/*"))):
        time.sleep(0.01)
    wait_for_steps(folders[0], 9, first)
    time.sleep(random.uniform(0, 0.2))  # in the middle of whatever it does
    first[rank].send_signal(signal.SIGKILL)
    codes = [one.wait(60) for one in first]
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 2
    assert "Error" not in first[1 - rank].err.read_text()  # the launcher tells
    again = start(line, other, place, attempt=1)
    assert [one.wait(200) for one in again] == [0, 0], [one.err.read_text() for one in again]
    assert "Going on from step" in again[0].err.read_text()
    (out,) = place.glob("runs/*")
    for name in (WEIGHTS_NAME, "original_text.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (place / "whole" / name).read_bytes()
    complete = start(line, other, place, attempt=2)  # killed once more after the end
    assert [one.wait(60) for one in complete] == [0, 0]
    assert f"local-dir:{out}" in complete[0].out.read_text()


@pytest.mark.slow
def test_a_run_of_three_goes_on_with_one(launcher: TCPStore, place: Path) -> None:
    line = [*SETTINGS, "--no-evaluation", "--out", "out", "--optimizer", "sgd"]
    three = start(line, launcher, place, 3)
    wait_for_steps(place / "out", 9, three)
    three[2].send_signal(signal.SIGKILL)
    assert sorted(one.wait(60) for one in three) == [-signal.SIGKILL, 2, 2]
    assert run(["-q", "finetune", "--resume", "out"]) == 0
    assert run(["-q", *line, "--out", "whole"]) == 0
    curves = [losses(place / name) for name in ("out", "whole")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    resolved = json.loads((place / "out" / "run.json").read_text())["resolved"]
    assert (resolved["images_per_step"], resolved["processes"], resolved["micro_batch"]) == (6, 1, 2)


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(number: int, launcher: TCPStore, place: Path) -> None:
    both = start([*SETTINGS, *MORE, "--out", "out"], launcher, place)
    wait_for_steps(place / "out", 3, both)
    both[1].send_signal(number)
    assert [one.wait(60) for one in both] == [130, 130]
    assert "finetune --resume out" in both[0].err.read_text()
    assert "Traceback" not in both[0].err.read_text() + both[1].err.read_text()


def test_an_error_of_a_helper_is_told_once(launcher: TCPStore, place: Path) -> None:
    """Here of an image that only it reads, and cannot."""
    for number in range(8):
        (place / "d" / "kind 2" / f"{number}.png").write_bytes(b"no image")
    both = start([*SETTINGS, "--out", "out"], launcher, place)
    assert [one.wait(60) for one in both] == [2, 2]
    assert sum(one.err.read_text().count("Error: ") for one in both) == 1


@pytest.mark.slow
def test_without_a_launcher_that_watches_the_main_process_tells(place: Path) -> None:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    line = [*SETTINGS, *MORE, "--out", "out"]
    both = [Started(line, place, place / str(i), common | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)]
    wait_for_steps(place / "out", 3, both)
    both[1].send_signal(signal.SIGKILL)
    assert both[0].wait(60) == 2
    (error,) = [text for text in both[0].err.read_text().splitlines() if text.startswith("Error: ")]
    assert "Another process of this run has ended" in error
    assert "--resume" in error


def test_workers_beside_a_launch_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert run([*SETTINGS, "--workers", "2"]) == 2
    assert "3 processes were launched already: leave --workers out" in capsys.readouterr().err
    assert run([*SETTINGS, "--workers", "0"]) == 2
    assert "--workers must be" in capsys.readouterr().err


def test_a_batch_of_fewer_images_than_processes_is_refused_before_they_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*SETTINGS, "--workers", "7"]) == 2
    assert "--batch-size 6 is shared by 7 processes" in capsys.readouterr().err


def clipguard(*line: str, folder: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *prefix, "-m", "clipguard", *line]
    with (folder / "streams.out").open("w") as out, (folder / "streams.err").open("w") as err:
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, text=True)


def processes_of(folder: Path) -> dict[int, int]:
    """Process ids of the ranks that work in a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            there = (path / "cwd").resolve() == folder.resolve()
            environment = dict(part.split("=", 1) for part in (path / "environ").read_text().split("\0") if "=" in part)
        except OSError:
            continue
        if there and "RANK" in environment:
            found[int(environment["RANK"])] = int(path.name)
    return found


@pytest.mark.slow
def test_workers_are_processes_that_end_together(place: Path) -> None:
    assert clipguard(*SETTINGS, "--workers", "2", "--out", "two", folder=place).wait(300) == 0
    assert json.loads((place / "two" / "run.json").read_text())["resolved"]["processes"] == 2
    assert clipguard(*SETTINGS, "--workers", "2", "--dataset", "nowhere", folder=place).wait(300) == 2
    assert (place / "streams.err").read_text().count("Error: ") == 1
    for number, code, said in ((signal.SIGKILL, 2, "was killed by SIGKILL"), (signal.SIGINT, 130, "Interrupted.")):
        running = clipguard(*SETTINGS, *MORE, "--workers", "2", "--out", number.name, folder=place)
        while not list(place.glob(f"{number.name}/checkpoints/step-*")):
            assert running.poll() is None
            time.sleep(0.1)
        os.kill(processes_of(place)[1] if number == signal.SIGKILL else running.pid, number)
        assert running.wait(60) == code
        errors = (place / "streams.err").read_text()
        assert said in errors
        assert "Traceback" not in errors
        assert "torch/distributed" not in errors
        assert not processes_of(place)


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--standalone"], ["--master-port", "29631"]])
@pytest.mark.parametrize("seed", range(5))
def test_torchrun_starts_killed_processes_again(seed: int, how: list[str], place: Path) -> None:
    """Any rank at any moment."""
    generator = random.Random(seed)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "3", "--max-restarts", "3", *how)
    assert clipguard(*SETTINGS, "--out", "whole", folder=place, prefix=torchrun).wait(300) == 0
    running = clipguard(*SETTINGS, "--out", "out", folder=place, prefix=torchrun)
    for _ in range(3):
        time.sleep(generator.uniform(2, 25))
        if there := processes_of(place):
            os.kill(generator.choice(list(there.values())), signal.SIGKILL)
    assert running.wait(300) == 0
    for name in (WEIGHTS_NAME, "metrics.jsonl"):
        assert (place / "out" / name).read_bytes() == (place / "whole" / name).read_bytes()
