"""Files are there as a whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipguard.core.files.atomic_files import is_part, replacing, write_bytes

KILLED = """
import os, sys
from pathlib import Path
from clipguard.core.files.atomic_files import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_and_nothing_else_is_left(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for content in (b"old", b"new"):
        write_bytes(path, content, durable=durable)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_bytes(path, b"old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_bytes(b"half")
            assert path.read_bytes() == b"old"
            assert is_part(part.name)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (list(tmp_path.iterdir()), path.read_bytes()) == ([path], b"old")


def test_a_killed_process_leaves_what_was_there_and_a_part_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_bytes(path, b"old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
    left = [other.name for other in tmp_path.iterdir() if other != path]
    assert path.read_bytes() == b"old"
    assert [is_part(name) for name in left] == [True]
    assert not is_part(path.name)
