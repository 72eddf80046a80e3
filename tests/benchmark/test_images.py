"""The images of a run: each decoded once, in any number of processes, and what happens where one of these fails."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import slow_decoding
import torch
from forked import Started

import clipguard
from clipguard.benchmark import images as images_module
from clipguard.benchmark import task as task_module
from clipguard.benchmark.images import CHUNK, Images
from clipguard.benchmark.results.result import BenchResult
from clipguard.cli import run
from clipguard.core.environment import decoders as decoders_module
from clipguard.core.environment.decoders import FEW_IMAGES, MOST_DECODERS, choose_decoders, in_order
from clipguard.core.errors import ClipguardError, DatasetError
from clipguard.data import dataset as dataset_module
from clipguard.data import load_dataset
from clipguard.data.decoding import Decoded
from clipguard.data.images import EncodedImage
from clipguard.models.preprocessing import as_8bit, from_8bit, to_native_pixels

N = 3 * CHUNK + 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small images, of two sizes."""
    folder, numbers = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(N):
        pixels = numbers.integers(0, 256, (20 + index % 2, 24, 3), dtype=np.uint8)
        place = folder / ("cat", "dog")[index % 2]
        place.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(place / f"{index:03d}.png")
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Counter[str]]:
    """How often each file was decoded from now on, in whatever process."""
    log, decode = tmp_path / "decoded", dataset_module.decode

    def counting(encoded: EncodedImage, how: str) -> Decoded:
        with log.open("a") as lines:
            lines.write(f"{encoded.path}\n")
        return decode(encoded, how)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset_module, "decode", counting)
    return lambda: Counter(log.read_text().split())


def bench(photos: Path, **options: object) -> BenchResult:
    options = {"datasets": str(photos), "n_samples": "all", "attacks": "none", "store": None, "device": "cpu"} | options
    return clipguard.bench(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once_a_run(
    workers: int, photos: Path, decoded: Callable[[], Counter[str]], tmp_path: Path
) -> None:
    options = {"attacks": "pgd-1,fgsm", "eps": "1", "n_samples": CHUNK + 8, "store": tmp_path / "store"}
    bench(photos, decoders=workers, **options)
    assert len(decoded()) == CHUNK + 8
    assert set(decoded().values()) == {1}


def test_images_that_do_not_fit_into_memory_are_decoded_again(
    photos: Path, decoded: Callable[[], Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench(photos)
    before = decoded()
    monkeypatch.setattr(task_module, "KEPT_BYTES", 40 * 21 * 24 * 3)
    assert bench(photos, decoders=2).samples.equals(whole.samples)
    again = Counter((decoded() - before).values())
    assert again[1] + again[2] == N
    assert 40 <= again[1] < 50


@pytest.mark.parametrize("resolution", ["model", "native"])
def test_results_are_the_same_for_any_workers_and_batch_size(resolution: str, photos: Path) -> None:
    attack = {"attacks": "pgd-1", "eps": "2", "n_samples": CHUNK + 3, "resolution": resolution}
    usual = bench(photos, decoders=0, **attack)
    for other in ({"decoders": 1}, {"decoders": 3}, {"decoders": 2, "batch_size": 20}):
        result = bench(photos, **attack, **other)
        pd.testing.assert_frame_equal(result.samples, usual.samples)
        assert result.run["datasets"] == usual.run["datasets"]
        assert "decoders" not in result.run["plan"]


def test_pixels_from_workers_are_those_of_this_process(photos: Path) -> None:
    data = load_dataset(str(photos))
    preprocess = clipguard.load_model("tiny").preprocess()
    for change in (preprocess, to_native_pixels):
        here, there = (list(Images(data, n, 0).preprocessed(range(N), change, "cpu")) for n in (0, 2))
        assert [index for index, _ in there] == list(range(N))
        assert all(torch.equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(here, there, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_pixels_that_are_divided_on_a_gpu_are_the_same(photos: Path) -> None:
    data = load_dataset(str(photos))
    here, there = (
        list(Images(data, n, 0).preprocessed(range(N), to_native_pixels, device))
        for n, device in ((0, "cpu"), (2, "cuda"))
    )
    assert all(torch.equal(a, b.cpu()) and b.is_cuda for (_, a), (_, b) in zip(here, there, strict=True))


def test_large_images_are_not_kept(
    photos: Path, decoded: Callable[[], Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "LARGEST_KEPT", 20 * 24 * 3)  # every other
    bench(photos, n_samples=20, decoders=2)
    assert sorted(Counter(decoded().values())) == [1, 2]


def test_a_randomised_model_draws_the_same_numbers() -> None:
    torch.manual_seed(0)
    assert list(in_order(int, range(3), 1)) == [0, 1, 2]
    drawn = torch.rand(2)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(2))


def test_every_8_bit_level_comes_back_to_the_bit() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_8bit(levels.float() / 255), levels)
    assert torch.equal(from_8bit(levels), levels.float() / 255)


@pytest.mark.slow
def test_processes_that_are_not_forked_do_the_same(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders_module, "CONTEXT", "spawn")
    data = load_dataset(str(photos))
    images = Images(data, 2, images_module.KEPT_BYTES)
    assert dict(images.check(range(N))) == dict(Images(data, 0, 0).check(range(N)))
    preprocess = clipguard.load_model("tiny").preprocess()
    here, there = (list(one.preprocessed(range(N), preprocess, "cpu")) for one in (Images(data, 0, 0), images))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(here, there, strict=True))


def test_an_unreadable_image_is_named_by_a_worker_as_by_this_process(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for path in photos.rglob("*.png"):
        copy = folder / path.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    broken = sorted(folder.rglob("*.png"))[50]
    broken.write_bytes(broken.read_bytes()[:100])
    told = []
    for workers in ("0", "2"):
        command = ["-q", "bench", "-d", str(folder), "-n", "all", "-a", "none", "--decoders", workers, "--no-store"]
        assert run([*command, "--out", str(tmp_path / "run")]) == 2
        told.append(capfd.readouterr().err)
    assert f"cannot decode the image in row 50 ({broken})" in told[0]
    assert told[0] == told[1]
    assert told[0].count("\n") == 1


def test_an_error_of_a_worker_is_raised_as_it_was() -> None:
    def work(item: int) -> int:
        if item == 5:
            raise DatasetError("five")
        return item

    seen = []
    with pytest.raises(DatasetError, match=r"^five$"):  # noqa: PT012
        for result in in_order(work, range(10), 2):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]


def test_workers_are_started_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert choose_decoders(None, FEW_IMAGES - 1) == 0
    monkeypatch.setattr(decoders_module, "CONTEXT", "fork")
    assert choose_decoders(None, FEW_IMAGES) == MOST_DECODERS
    assert (choose_decoders(3, 50), choose_decoders(3, 1)) == (3, 1)
    monkeypatch.setattr(decoders_module, "CONTEXT", None)
    assert (choose_decoders(None, FEW_IMAGES), choose_decoders(2, 9)) == (0, 2)
    monkeypatch.setattr(decoders_module, "CONTEXT", "fork")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert choose_decoders(None, FEW_IMAGES) == 0


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_a_wrong_number_of_workers_is_refused(value: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-d", "emoji-food", "--decoders", value]) == 2
    assert "--decoders" in capfd.readouterr().err


def test_a_worker_that_is_killed_ends_the_run_and_loses_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images do not fit into memory, and a worker dies of one of them once it is decoded for the passes."""
    decode, main, seen = dataset_module.decode, os.getpid(), tmp_path / "seen"
    last = sorted(photos.rglob("*.png"))[-1]

    def deadly(encoded: EncodedImage, how: str) -> Decoded:
        if encoded.path == str(last) and os.getpid() != main:
            if seen.exists():
                time.sleep(1)  # the images before are through the model by then
                os.kill(os.getpid(), signal.SIGKILL)
            seen.write_text("")
        return decode(encoded, how)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset_module, "decode", deadly)
    monkeypatch.setattr(task_module, "KEPT_BYTES", 0)
    options = {"decoders": 2, "batch_size": 16, "store": tmp_path / "store"}
    with pytest.raises(ClipguardError, match="A process that decodes images was killed"):
        bench(photos, **options)
    again = bench(photos, decoders=0, store=tmp_path / "store")
    assert again.run["costs"][0]["reused"] >= 2 * CHUNK
    assert again.samples.equals(bench(photos, decoders=0).samples)


def is_alive(pid: int) -> bool:
    """Whether the process is there, and more than an entry that nobody has read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("check", signal.SIGINT),
        ("passes", signal.SIGINT),
        ("passes", signal.SIGKILL),
        pytest.param("check", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("check", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("passes", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_stopped_in_any_phase_no_process_is_left(phase: str, number: int, photos: Path, tmp_path: Path) -> None:
    command = ["bench", "-d", str(photos), "-n", "all", "-a", "none", "--decoders", "2", "--no-store"]
    changed = slow_decoding.constants(phase)
    process = Started([*command, "--device", "cpu"], tmp_path, tmp_path / "streams", constants=changed)
    deadline = time.monotonic() + 100
    while len(pids := [int(path.name[4:]) for path in tmp_path.glob("pid-*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(pids) == 2
    told = [process.pid, *pids] if number == signal.SIGINT else [process.pid]  # a terminal tells every process
    for pid in told:
        os.kill(pid, number)
    code, err = process.wait(60), process.err.read_text()
    assert code == (-number if number == signal.SIGKILL else 128 + number), err
    if number != signal.SIGKILL:
        assert err.splitlines()[-1] == ("Interrupted." if number == signal.SIGINT else "Terminated.")
        assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if is_alive(pid)]
    if number != signal.SIGKILL and (results := list(tmp_path.rglob("results.json"))):
        assert json.loads(results[0].read_text())["run"]["complete"] is False
