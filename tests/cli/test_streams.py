"""Standard streams that are closed, full or not read, and a working directory that is gone: a line, and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = "bench -d emoji-food -a none -n 6 --out run --device cpu"
FULL = "Error: The results cannot be printed (No space left on device). Files that were written are complete.\n"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash in which CLIPGUARD is the command."""
    text = line.replace("CLIPGUARD", f"{sys.executable} -m clipguard")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("line", ["--version", "--help", "list datasets"])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_what_cannot_be_printed_is_said(
    line: str, buffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", buffered)
    done = shell(f"CLIPGUARD {line} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (2, FULL)


def test_files_are_complete_where_nothing_can_be_printed(tmp_path: Path) -> None:
    done = shell(f"CLIPGUARD -q {BENCH} --format json > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (2, FULL)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["run"]["complete"] is True
    assert len(list((tmp_path / "run").iterdir())) == 4


def test_a_closed_stdout_is_refused_before_any_work(tmp_path: Path) -> None:
    done = shell(f"CLIPGUARD {BENCH} >&-", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The standard output is closed")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert shell("CLIPGUARD list datasets >&- 2>&-", tmp_path).returncode == 2


@pytest.mark.slow
def test_without_stderr_results_are_all_that_is_printed(tmp_path: Path) -> None:
    done = shell(f"CLIPGUARD {BENCH} --format json 2>&-", tmp_path)
    assert done.returncode == 0
    assert done.stdout == (tmp_path / "run" / "results.json").read_text()


@pytest.mark.parametrize("where", ["2>&-", "2> /dev/full"])
def test_without_stderr_errors_go_nowhere(where: str, tmp_path: Path) -> None:
    done = shell(f"CLIPGUARD --version {where}", tmp_path)
    assert (done.returncode, done.stdout.startswith("clipguard ")) == (0, True)
    done = shell(f"CLIPGUARD list nothing {where}", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    done = shell("set -o pipefail; CLIPGUARD list datasets | true", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    done = shell(f"mkdir gone; cd gone; rmdir ../gone; CLIPGUARD {BENCH}", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "Error: The working directory is gone (No such file or directory); cd to one that exists.\n"
