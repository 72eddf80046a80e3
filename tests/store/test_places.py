"""Stores on file systems that can do little, and in object stores."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from racing import race

import clipguard
from clipguard.benchmark.stored import session as store_session
from clipguard.cli import run
from clipguard.core.errors import ResultError
from clipguard.store import store as store_module
from clipguard.store.places import RemotePath, open_place
from clipguard.store.store import Store, distinct

FAST = {"datasets": ["emoji-food"], "attacks": ["pgd-2"], "eps": ["1,4"], "n_samples": 6, "probes": False}
BENCH = ["-q", "bench", "-d", "emoji-food", "--attack", "pgd-2", "--eps", "1,4", "-n", "6", "--no-probes"]


@pytest.fixture(autouse=True)
def segments_of_every_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_session, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(store_session, "MOST_SEGMENTS", 1000)


def measure(store: str | Path | None) -> clipguard.BenchResult:
    return clipguard.bench(store=store, **FAST)  # type: ignore[arg-type]


def reused(result: clipguard.BenchResult) -> tuple[int, int]:
    costs = result.run["costs"]
    return sum(c["reused"] for c in costs), sum(c["computed"] for c in costs)


# File systems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    whole = measure(tmp_path / "store")
    assert reused(whole)[0] == 0
    assert reused(measure(tmp_path / "store")) == (6 * 3, 0)
    assert list((tmp_path / "store" / "parts").iterdir()) == []


def test_a_file_system_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "chmod", refuse)
    measure(tmp_path / "store")
    assert reused(measure(tmp_path / "store")) == (6 * 3, 0)


def test_a_segment_that_another_machine_merged_is_read_from_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS answers ESTALE for a file that another client has removed."""
    measure(tmp_path / "store")
    (cell,) = Store(tmp_path / "store").cells()
    before = distinct(cell.segments())
    read, merged = Path.read_bytes, []

    def stale_once(path: Path) -> bytes:
        if path.suffix == ".parquet" and not merged:
            merged.append(path)
            monkeypatch.setattr(Path, "read_bytes", read)
            assert cell.merge() > 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale_once)
    after = cell.segments()
    assert len(after) == 1
    assert len(distinct(after)) == len(before)
    assert not (tmp_path / "store" / "damaged").exists()


def test_names_that_stay_stale_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(tmp_path / "store")
    (cell,) = Store(tmp_path / "store").cells()
    first, *others = [segment.path for segment in cell.segments()]
    read = Path.read_bytes

    def stale(path: Path) -> bytes:
        if path == first:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    monkeypatch.setattr(store_module, "PAUSES", (0.0, 0.01))
    assert [segment.path for segment in cell.segments()] == others
    assert Path(str(first)).exists()


def test_a_rename_whose_answer_was_lost_has_succeeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends a request again, and the second answer is that there is no such file."""
    rename = Path.replace

    def twice(path: Path, target: Path) -> Path:
        rename(path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", twice)
    measure(tmp_path / "store")
    monkeypatch.setattr(Path, "replace", rename)
    assert reused(measure(tmp_path / "store")) == (6 * 3, 0)


@pytest.fixture
def poor_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system without hard links, modes and O_TMPFILE: FAT, by FUSE or by the kernel."""
    image, mount = tmp_path / "fat.img", tmp_path / "mount"
    mount.mkdir()
    by_fuse = ["fusefat", "-o", "rw+", str(image), str(mount)]
    by_kernel = ["mount", "-o", "loop", str(image), str(mount)]
    try:
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True, text=True)
        subprocess.run(by_fuse if shutil.which("fusefat") else by_kernel, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or error
        pytest.skip(f"no FAT can be mounted here (Debian's dosfstools and fusefat would do): {why}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def two_at_once(store: str, folder: Path) -> list[Path]:
    """The folders of two runs into one store at once."""
    outs = [folder / "one", folder / "two"]
    (ends,) = race(folder, [[*BENCH, "--store", store, "--out", str(out)] for out in outs])
    assert [end.code for end in ends] == [0, 0], ends
    return outs


def same_tables(outs: list[Path]) -> bool:
    names = ("samples.parquet", "results.csv", "results.md")
    return all(len({(out / name).read_bytes() for out in outs}) == 1 for name in names)


def test_two_processes_on_a_poor_file_system(poor_folder: Path, tmp_path: Path) -> None:
    (poor_folder / "file").touch()
    with pytest.raises(OSError):  # noqa: PT011 - EPERM or ENOTSUP
        os.link(poor_folder / "file", poor_folder / "link")
    assert same_tables(two_at_once(str(poor_folder / "store"), tmp_path))
    assert reused(measure(poor_folder / "store")) == (6 * 3, 0)
    assert run(["store", "verify", "--store", str(poor_folder / "store")]) == 0


# Object stores --------------------------------------------------------------------------------------------------

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Host and port of a local S3."""
    moto = pytest.importorskip("moto.server")
    one = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    one.start()
    host, port = one.get_host_and_port()
    yield f"{host}:{port}"
    one.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A new bucket, which the environment says how to reach."""
    from pyarrow.fs import S3FileSystem

    for name, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://{server}"}).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{abs(hash(request.node.name))}"
    S3FileSystem(
        access_key="test", secret_key="test", endpoint_override=server, scheme="http", allow_bucket_creation=True
    ).create_dir(name)
    return name


def test_results_are_kept_in_an_object_store(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = f"s3://{bucket}/some/where"
    first = measure(store)
    again = measure(store)
    assert reused(again) == (6 * 3, 0)
    assert again.samples.equals(first.samples)
    assert measure(None).samples.equals(first.samples)
    assert run(["-q", "store", "ls", "--store", store, "--format", "json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert (cell["images"], cell["results"], cell["segments"] > 1, cell["bytes"] > 0) == (
        6,
        18 - lost(first),
        True,
        True,
    )
    assert run(["store", "verify", "--store", store]) == 0
    assert run(["store", "export", "--store", store, "--out", str(tmp_path / "all.csv")]) == 0
    assert run(["store", "gc", "--store", store]) == 0
    (cell_after,) = Store(store).cells()
    assert len(cell_after.segments()) == 1
    assert reused(measure(store)) == (6 * 3, 0)
    assert run(["store", "gc", "--store", store, "--model", "tiny", "--yes"]) == 0
    assert distinct([s for c in Store(store).cells() for s in c.segments()]).empty
    assert reused(measure(Path(store))) == (0, 6 * 3)  # a path that lost a slash


def lost(result: clipguard.BenchResult) -> int:
    """Results that no run needs: of images that were broken before."""
    samples = result.samples
    clean = samples[samples["eps"] == 0].set_index("index")["robust"]
    at_one = samples[samples["eps"] == 1].set_index("index")["robust"]
    return int(2 * (~clean).sum() + (clean & ~at_one).sum())


def test_damage_in_an_object_store_is_set_aside(bucket: str) -> None:
    store = f"s3://{bucket}"
    measure(store)
    (cell,) = Store(store).cells()
    path = cell.segments()[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert run(["store", "verify", "--store", store]) == 1
    assert not path.exists()
    assert len(list((cell.store.path / "damaged").glob("*"))) == 1
    assert reused(measure(store))[1] > 0
    assert run(["store", "gc", "--damaged", "--yes", "--store", store]) == 0
    assert list((cell.store.path / "damaged").glob("*")) == []


def test_two_processes_share_an_object_store(bucket: str, tmp_path: Path) -> None:
    assert same_tables(two_at_once(f"s3://{bucket}/shared", tmp_path))
    assert reused(measure(f"s3://{bucket}/shared")) == (6 * 3, 0)


def test_the_address_says_where(server: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    place = open_place(f"s3://{bucket}/deep?endpoint_override={server}&scheme=http")
    assert isinstance(place, RemotePath)
    assert str(place / "x") == f"s3://{bucket}/deep/x"
    assert not (place / "x").exists()
    with pytest.raises(FileNotFoundError):
        (place / "x").read_bytes()


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("s3://nowhere/x?endpoint_override=127.0.0.1:9&scheme=http", "cannot be used"),
        ("s3://bucket/x?frobnicate=1", "frobnicate"),
        ("hdfs://host/x", "must be a folder, s3://BUCKET/PREFIX"),
        ("s3:///x", "must be a folder, s3://BUCKET/PREFIX"),
        pytest.param(
            "gs://bucket/x?anonymous=true&scheme=http&endpoint_override=127.0.0.1:9",
            "cannot be used",
            marks=pytest.mark.slow,  # it is waited for
        ),
    ],
)
def test_a_place_that_does_not_answer_is_one_line(
    store: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    started = time.monotonic()
    assert run([*BENCH, "--store", store, "--out", str(tmp_path / "out")]) == 2
    assert time.monotonic() - started < 15
    said = " ".join(capsys.readouterr().err.split())
    assert says in said
    assert "Traceback" not in said
    assert run(["store", "ls", "--store", store]) == 2


def test_there_is_no_such_bucket(bucket: str) -> None:
    with pytest.raises(ResultError, match="no such bucket"):
        Store(f"s3://{bucket}-not/x")
    place = open_place(f"s3://{bucket}")
    (place / "x" / "y").write_bytes(b"")
    with pytest.raises(ResultError, match="no store of clipguard"):
        Store(f"s3://{bucket}/x")
