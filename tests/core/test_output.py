"""A folder or a file is one run's: taken at the start, however many want it, and free again when that run is gone."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clipguard.core.errors import ClipguardError, OutputError
from clipguard.core.files.locks import Lock
from clipguard.core.files.output import LOCK, OutputFile, OutputFolder, make_folders

fork = multiprocessing.get_context("fork")


Take = Callable[[], Any]


def contend(takes: Sequence[Take], number: int, start: Any, done: Any, results: Any) -> None:
    """One thing after the other, take it at the same moment as others, and keep it until all have tried."""
    for turn, take in enumerate(takes):
        start.wait()
        try:
            with take() as taken:
                results.put((turn, number, str(taken.path), ""))
                done.wait()
        except ClipguardError as error:
            results.put((turn, number, "", str(error)))
            done.wait()


def at_once(*turns: Sequence[Take]) -> list[list[tuple[int, str, str]]]:
    """Let eight processes or so take something at once, turn by turn: number, path or error of each.

    The same processes in all turns: to fork one from that of the tests, which is large, takes a tenth of a second.
    """
    start, done, results = fork.Barrier(len(turns[0])), fork.Barrier(len(turns[0])), fork.SimpleQueue()
    takes = list(zip(*turns, strict=True))
    processes = [fork.Process(target=contend, args=(own, i, start, done, results)) for i, own in enumerate(takes)]
    for process in processes:
        process.start()
    found: list[list[tuple[int, str, str]]] = [[] for _ in turns]
    for _ in range(len(turns) * len(processes)):
        turn, *result = results.get()
        found[turn].append((result[0], result[1], result[2]))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [sorted(results) for results in found]


@pytest.mark.parametrize("existing", [False, True])
def test_of_eight_that_want_a_folder_one_gets_it(existing: bool, tmp_path: Path) -> None:
    turns: list[list[Take]] = []
    for number in range(15):
        path = tmp_path / f"{number}" / "run"
        (path if existing else path.parent).mkdir(parents=True)
        link = tmp_path / f"link {number}"
        link.symlink_to(path.parent)
        kinds = [
            partial(OutputFolder, path),
            partial(OutputFolder, link / "run", whole=True),
            partial(OutputFolder, path, option="--figures"),
            partial(OutputFolder, path, must_make=True),
        ]
        turns.append(kinds * 2)
    for number, found in enumerate(at_once(*turns)):
        assert [bool(path) for _, path, _ in found].count(True) == 1, found
        assert all("exists already" in e or "under way (" in e for _, path, e in found if not path), found
        assert list((tmp_path / f"{number}" / "run").rglob("*")) == []


def test_of_eight_that_want_a_file_one_gets_it(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}" / "report.html" for number in range(10)]
    turns = [[partial(OutputFile, path)] * 8 for path in paths]
    for path, found in zip(paths, at_once(*turns), strict=True):
        assert [bool(path) for _, path, _ in found].count(True) == 1, found
        assert not path.exists()


def test_default_names_are_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: list[Take] = [lambda: OutputFolder.by_default("tiny"), lambda: OutputFolder.by_default("tiny", "a-")]
    for found in at_once(*[names * 4] * 5):
        assert len({path for _, path, _ in found if path}) == 8, found
    assert list(Path("runs").glob("*")) == []


def test_a_default_name_that_is_taken_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [OutputFolder.by_default("my run!") for _ in range(30)]
    second = [folder for folder in names if folder.path.name.endswith("-my-run-2")]
    assert second
    assert all(folder.path.is_dir() for folder in names)


def test_a_killed_run_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    path, taken = tmp_path / "run", fork.Event()

    def hold() -> None:
        folder = OutputFolder(path)
        (path / ".results.json.0a1b2c3d.part").write_text("half")
        taken.set()
        time.sleep(60)
        folder.release()

    process = fork.Process(target=hold)
    process.start()
    taken.wait()
    who = rf"`out` {path} belongs to a run that is under way \(process {process.pid}\)"
    with pytest.raises(OutputError, match=who):
        OutputFolder(path)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (path / LOCK).is_file()
    with OutputFolder(path) as folder:
        folder.write_files({"a.txt": b"whole", "png/b.txt": b"whole"})
    assert sorted(str(p.relative_to(path)) for p in path.rglob("*")) == ["a.txt", "png", "png/b.txt"]


def test_a_child_of_a_run_holds_nothing(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "run")
    child = fork.Process(target=time.sleep, args=(30,))
    child.start()
    try:
        folder.release()
        OutputFolder(tmp_path / "run").release()
    finally:
        child.kill()
    assert not (tmp_path / "run").exists()


def test_errors_leave_nothing_of_a_folder_that_is_whole_or_not_there(tmp_path: Path) -> None:
    def interrupted(folder: OutputFolder) -> None:
        with folder:
            folder.write_files({"one": b"1"})
            if folder.path.name == "whole":
                folder.write_files({"png/two": b"2"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(OutputFolder(tmp_path / "a" / "whole", whole=True))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupted(OutputFolder(tmp_path / "run"))  # which can be gone on with
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["one"]


def test_a_run_does_not_write_inside_anothers_folder(tmp_path: Path) -> None:
    def hold(path: Path, taken: Any, end: Any) -> None:
        with OutputFolder(path):
            taken.set()
            end.wait()

    taken, end = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(tmp_path / "run", taken, end))
    process.start()
    taken.wait()
    try:
        for take in (
            lambda: OutputFolder(tmp_path / "run" / "png"),
            lambda: OutputFile(tmp_path / "run" / "results.csv"),
            lambda: OutputFile(tmp_path / "run" / "results.csv", option="--junit", replace=True),
        ):
            with pytest.raises(OutputError, match="inside a folder of another run"):
                take()
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    finally:
        end.set()
        process.join()


def test_what_is_no_place_for_a_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "odd ü\n*?").mkdir()
    for path, why in {
        "file": "exists already and is no folder",
        "dangling": "exists already and is no folder",
        "file/below": "cannot be written (Not a directory)",
        "x" * 300: "cannot be written (File name too long)",
        "/proc/nothing/here": "cannot be written (No such file or directory)",
        ".": "exists already; nothing is overwritten",
    }.items():
        with pytest.raises(OutputError) as caught:
            OutputFolder(Path(path))
        assert why in str(caught.value)
    for path in ("file", "dangling"):
        with pytest.raises(OutputError, match="exists already; nothing is overwritten"):
            OutputFile(Path(path))
    with pytest.raises(OutputError, match="is no ordinary file"):
        OutputFile(Path("/dev/null"), option="--junit", replace=True)
    with OutputFolder(Path("odd ü\n*?")) as folder:
        folder.write_files({"a": b""})
    monkeypatch.chdir(tmp_path / "odd ü\n*?")
    (tmp_path / "odd ü\n*?" / "a").unlink()
    with OutputFolder(Path()), pytest.raises(OutputError, match="under way"):
        OutputFolder(tmp_path / "odd ü\n*?")
    assert list(Path().iterdir()) == []


def test_a_file_is_replaced_whole_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "junit.xml"
    first, second = (OutputFile(path, option="--junit", replace=True) for _ in range(2))
    first.write(b"first")
    second.write(b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["junit.xml"]


def test_without_locks_the_file_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    folder = OutputFolder(tmp_path / "run")
    with pytest.raises(OutputError, match="under way"):
        OutputFolder(tmp_path / "run")
    folder.release()
    lock = Lock(tmp_path / "lock", "it")
    lock.path.write_text("999999999 elsewhere\n")
    who = f"process 999999999 on elsewhere; if it is none any more, remove {lock.path}"
    with pytest.raises(OutputError, match=who):
        Lock(tmp_path / "lock", "it")
    lock.path.unlink()  # the cure
    Lock(tmp_path / "lock", "it").release()


def test_folders_are_made_beside_runs_that_remove_theirs(tmp_path: Path) -> None:
    def make_and_remove() -> None:
        for _ in range(300):
            with OutputFolder(tmp_path / "runs" / str(os.getpid())):
                pass

    processes = [fork.Process(target=make_and_remove) for _ in range(4)]
    for process in processes:
        process.start()
    for number in range(100):
        made: list[Path] = []
        assert make_folders(tmp_path / "runs" / f"store {number}", made)
    for number in range(100):
        OutputFolder(tmp_path / "runs" / f"{number}").release()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
