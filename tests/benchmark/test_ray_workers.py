"""Workers on Ray find what one process finds, whatever happens to them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Started
from torch import Tensor, nn

import clipguard
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.workers.cluster import ask
from clipguard.benchmark.workers.crew import LOST, reason
from clipguard.cli import run
from clipguard.core.errors import ClipguardError

ray = pytest.importorskip("ray")
ATTACK = ["-d", "emoji-food", "-n", "24", "-a", "apgd-ce(iterations=30)", "--eps", "1,4", "--device", "cpu"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray of this process, which runs use as they find it."""
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def bench(**options: object) -> BenchResult:
    options = {"n_samples": 16, "eps": "1,8", "attacks": "pgd-10", "datasets": "emoji-food", "device": "cpu"} | options
    return clipguard.bench(**options)  # type: ignore[arg-type]


def assert_same(one: BenchResult, other: BenchResult) -> None:
    assert one.samples.equals(other.samples)
    assert one.to_frame().equals(other.to_frame())
    assert one.run["findings"] == other.run["findings"]
    assert one.run["datasets"] == other.run["datasets"]
    assert one.run["models"] == other.run["models"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"workers": 2},
        {"workers": 3, "attacks": "pgd-10,apgd-t", "eps_mode": "nested", "n_samples": 8},
        {"workers": 2, "resolution": "native", "norm": "l2", "eps": "0.5", "batch_size": 3},
    ],
)
@pytest.mark.usefixtures("cluster")
def test_any_number_of_workers_gives_the_rows_of_one_process(options: dict[str, object]) -> None:
    alone = bench(**{name: value for name, value in options.items() if name != "workers"})
    together = bench(**options)
    assert_same(alone, together)
    passes = [result.run["costs"][0]["stages"]["clean"]["forward"] for result in (alone, together)]
    assert passes[0] == passes[1] == options.get("n_samples", 16)


class HereOnly:
    """Images that other processes cannot read, as if their files were not on that node."""

    def __init__(self, images: object) -> None:
        self.images, self.process = images, os.getpid()

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> object:
        if os.getpid() != self.process:
            raise FileNotFoundError(index)
        return self.images[index]  # type: ignore[index]


class Small(nn.Module):
    """Mean colours, as logits of 4 classes, or others."""

    def __init__(self, breaks: bool = False, classes: int = 4) -> None:
        super().__init__()
        self.linear, self.breaks = nn.Linear(3, classes), breaks
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(classes, 3) * 9)

    def forward(self, x: Tensor) -> Tensor:
        if self.breaks:
            os.kill(os.getpid(), signal.SIGKILL)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def pictures() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8), draw.integers(0, 4, 12)


@pytest.mark.usefixtures("cluster")
def test_modules_arrays_and_images_that_only_this_process_reads_go_to_workers() -> None:
    data = clipguard.load_dataset("emoji-food")
    names = data.class_names
    data.images = HereOnly(data.images)  # type: ignore[assignment]
    given = {"models": ["tiny", Small(classes=len(names)).eval()], "datasets": [data, (*pictures(), list(names))]}
    assert_same(bench(**given, workers=2), bench(**given))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_answers_that_come_block_by_block_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do through Ray Client."""
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: True)
    assert_same(bench(), bench(workers=2))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_doctor_and_comparisons_work_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = {
        "doctor": ["doctor", "-n", "8", "--attack", "fgsm", "--format", "json"],
        "compare": ["compare", "tiny", "tiny", "-n", "8", "-d", "emoji-food", "--attack", "fgsm", "--format", "json"],
    }
    for name, line in commands.items():
        where = ["--ray", "auto"] if name == "doctor" else ["--workers", "2"]
        said = []
        for options in ([], where):
            assert run([*line, *options]) == 0
            stream = capfd.readouterr()
            assert ("worker" in stream.err) == bool(options)
            said.append(json.loads(stream.out))
        key = "findings" if name == "doctor" else "cells"
        assert said[0][key] == said[1][key]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_images_that_kill_their_worker_are_an_error_that_names_them() -> None:
    with pytest.raises(ClipguardError, match="3 workers died while they attacked image"):
        bench(models=Small(breaks=True).eval(), datasets=pictures(), classes="a,b,c,d", workers=2)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_error_in_a_worker_is_the_same_error() -> None:
    x, labels = pictures()
    messages = []
    for workers in (1, 2):
        with pytest.raises(ClipguardError) as error:
            bench(models=Small().eval(), datasets=(x, labels), classes="a,b,c,d,e", workers=workers)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "classes" in messages[0]


@pytest.mark.usefixtures("cluster")
def test_adversarial_images_are_those_of_one_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for workers in ("1", "2"):
        line = ["attack", "-n", "6", "--attack", "pgd-10", "--workers", workers]
        assert run([*line, "-o", str(tmp_path / workers)]) == 0
        assert ("2 workers: cpu" in capfd.readouterr().err) == (workers == "2")
    for name in ("adversarial.safetensors", "samples.parquet", "grid.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def attackers(ancestor: int) -> list[int]:
    """Processes that attack for a run: descendants of its driver."""
    command = ["ps", "-eo", "pid,ppid,args"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    processes = [(int(pid), int(parent), args) for pid, parent, args in (line.split(None, 2) for line in lines)]
    family, before = {ancestor}, 0
    while len(family) > before:
        before = len(family)
        family |= {pid for pid, parent, _ in processes if parent in family}
    return [pid for pid, _, args in processes if pid in family and "ray::RemoteWorker.attack" in args]


def is_attacker(pid: int) -> bool:
    """Whether a process still is one: those of a killed driver are no descendants of it."""
    try:
        return b"ray::RemoteWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def when_attacked(process: Started) -> list[int]:
    until = time.monotonic() + 120
    while not (found := attackers(process.pid)):
        assert process.process.exitcode is None, process.err.read_text()
        assert time.monotonic() < until, process.err.read_text()
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    "kill",
    ["worker", pytest.param("interrupt", marks=pytest.mark.slow), pytest.param("driver", marks=pytest.mark.slow)],
)
def test_a_run_survives_a_killed_worker_and_goes_on_after_its_own_end(kill: str, tmp_path: Path) -> None:
    """It goes on from what another run stored, too."""
    attack, store = "apgd-ce(iterations=30)", tmp_path / "store"
    bench(n_samples=8, attacks=attack, eps="1", store=store)
    line = ["bench", *ATTACK, "--store", "store", "-o", "out"]
    process = Started([*line, "--workers", "2"], tmp_path, tmp_path / kill)
    workers = when_attacked(process)
    time.sleep(0.5)
    if kill == "worker":
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait(200) == 0
        assert "A worker died" in process.err.read_text()
        assert not re.search("raylet|Traceback", process.out.read_text() + process.err.read_text())
    else:
        process.send_signal(signal.SIGKILL if kill == "driver" else signal.SIGINT)
        started = time.monotonic()
        assert process.wait(60) == (-signal.SIGKILL if kill == "driver" else 130)
        assert time.monotonic() - started < 30
        until = time.monotonic() + 30
        while any(is_attacker(pid) for pid in workers):  # none stays behind
            assert time.monotonic() < until
            time.sleep(0.1)
        assert Started(line, tmp_path, tmp_path / "again").wait(200) == 0
    found = BenchResult.load(tmp_path / "out")
    assert found.run["costs"][0]["reused"] >= 16  # 8 images, clean and at eps 1; some are broken there
    assert found.samples.equals(bench(n_samples=24, attacks=attack, eps="1,4").samples)
    again = bench(n_samples=24, attacks=attack, eps="1,4", store=store)
    assert again.run["costs"][0]["computed"] == 0
    assert again.samples.equals(found.samples)


def test_an_address_where_nothing_answers_is_refused_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    assert run(["bench", "--ray", f"127.0.0.1:{port}"]) == 2
    assert time.monotonic() - started < 10
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
    for address in ("x:y", "ray://nowhere.invalid:1", "127.0.0.1:99999999"):
        assert run(["bench", "--ray", address]) == 2
        assert address in capfd.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_what_answers_and_is_no_cluster_is_refused_within_seconds() -> None:
    ask(ray.get_runtime_context().gcs_address)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for scheme in ("", "ray://"):
            started = time.monotonic()
            with pytest.raises(ClipguardError, match="is no Ray cluster"):
                ask(f"{scheme}127.0.0.1:{silent.getsockname()[1]}")
            assert time.monotonic() - started < 10


class Dies(Small):
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (1,)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_workers_that_die_as_they_start_end_the_run() -> None:
    with pytest.raises(ClipguardError, match="died 3 times each as they started: The actor is dead because its worker"):
        bench(models=Dies().eval(), datasets=pictures(), classes="a,b,c,d", ray="auto")


@pytest.mark.usefixtures("cluster")
def test_a_run_for_which_no_worker_comes_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("clipguard.benchmark.workers.crew.PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("clipguard.benchmark.workers.crew.MOST_SECONDS", 2.0)

    class Placeholder:  # in here, so that it travels whole
        def ready(self) -> None: ...

    other = ray.remote(Placeholder).options(num_cpus=3).remote()
    ray.get(other.ready.remote())
    try:
        with pytest.raises(ClipguardError, match=r"No worker for .* 0 of 3 processors of the cluster are free"):
            bench(ray="auto")
    finally:
        ray.kill(other)
    assert "waits for room" in caplog.text


def test_memory_is_named_where_ray_ends_workers_for_want_of_it() -> None:
    error = ray.exceptions.OutOfMemoryError(
        "Task was killed due to the node running low on memory.\nMemory on the node"
    )
    assert reason(error) == "Task was killed due to the node running low on memory"
    assert isinstance(error, LOST)


def test_without_ray_the_extra_is_named(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert run(["bench", "--workers", "2"]) == 2
    assert 'pip install "clipguard[ray]"' in capfd.readouterr().err


@pytest.mark.parametrize("options", [["--engine", "reference"], ["--device", "cuda:1"]])
def test_what_workers_cannot_follow_is_refused(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--workers", "2", *options]) == 2
    assert "workers" in capfd.readouterr().err


@pytest.mark.slow
def test_two_nodes_of_a_cluster_share_a_run_and_one_of_them_may_go() -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    try:
        alone = bench(n_samples=40, attacks="apgd-ce")
        results: list[BenchResult] = []
        work = threading.Thread(
            target=lambda: results.append(bench(n_samples=40, attacks="apgd-ce", ray=nodes.address))
        )
        work.start()
        until = time.monotonic() + 120
        while len(attackers(os.getpid())) < 2 and work.is_alive():
            assert time.monotonic() < until
            time.sleep(0.1)
        nodes.remove_node(second, allow_graceful=False)
        work.join(300)
        assert_same(alone, results[0])
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_runs_that_are_killed_at_random_end_in_the_same_table(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    line = ["bench", *ATTACK, "--store", "store", "-o", "out", "--workers", f"{draw.integers(2, 4)}"]
    kills = 0
    for number in range(20):
        process = Started(line, tmp_path, tmp_path / f"run{number}")
        with contextlib.suppress(AssertionError):  # it ended before: a later run has less to do
            workers = when_attacked(process)
            time.sleep(draw.uniform(0, 4))
            what = draw.choice(["worker", "driver", "head"]) if number < 3 else "worker"
            if what == "driver":
                process.send_signal(signal.SIGKILL)
            elif what == "worker":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(draw.choice(workers)), signal.SIGKILL)
            else:
                subprocess.run(["pkill", "-9", "-P", str(process.pid), "gcs_server"], check=False)
            kills += 1
        if process.wait(300) == 0:
            break
    whole = bench(n_samples=24, attacks="apgd-ce(iterations=30)", eps="1,4")
    assert BenchResult.load(tmp_path / "out").samples.equals(whole.samples)
    assert kills
