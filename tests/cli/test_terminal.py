"""Terminals and locales that cannot show everything: no command fails for it, and no file or data differs."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import clipguard
from clipguard.cli import run

NAMES = ["猫", "thé", "dog"]
Streams = tuple[int, bytes, bytes]


def run_on(encoding: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Streams:
    """Exit code, stdout and stderr of a command whose streams have this encoding, as Python opens them."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors=e) for e in ("strict", "backslashreplace"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = run(arguments)
        out.flush()
        err.flush()
    return code, out.buffer.getvalue(), err.buffer.getvalue()  # type: ignore[attr-defined]


def run_in_the_c_locale(folder: Path, *arguments: str) -> Streams:
    """The same of a process in a locale whose names of files are ASCII."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONPATH": str(Path(clipguard.__file__).parent.parent), "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "clipguard", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name, and whose classes' names, are not ASCII."""
    for number, name in enumerate(NAMES):
        (tmp_path / "photós" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (200, 80 * number, 50)).save(tmp_path / "photós" / name / "x.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_table(streams: Streams, out: Path, encoding: str) -> None:
    code, stdout, stderr = streams
    assert code == 0, stderr
    table = stdout.decode(encoding)
    assert ("photós  | 3 |" if encoding == "latin-1" else "phot?s  | 3 |") in table
    assert "+--" in table
    assert "20.8-93.9" in table  # Wilson, 2 of 3
    assert b"Traceback" not in stderr
    for file in ("results.md", "results.csv"):
        assert "photós" in (out / file).read_text(encoding="utf-8")
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert sorted(content["run"]["datasets"]["photós"]["class_names"]) == sorted(NAMES)


TABLE = ("-q", "bench", "-d", "photós", "--attack", "none", "--no-store", "--out", "å")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_table_is_printed_and_the_files_are_utf8(
    encoding: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_table(run_on(encoding, monkeypatch, *TABLE), photos / "å", encoding)


def test_the_same_in_a_locale_whose_names_of_files_are_ascii(photos: Path) -> None:
    check_table(run_in_the_c_locale(photos, *TABLE), photos / "å", "ascii")


def test_data_on_stdout_is_without_loss(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del photos
    attack = ["-q", "attack", "photós/thé/x.png", "--classes", ",".join(NAMES), "--label", "猫", "--attack", "pgd-1"]
    code, out, err = run_on("ascii", monkeypatch, *attack, "--format", "json")
    assert code == 0, err
    assert json.loads(out.decode("ascii"))["images"][0]["label"] == "猫"
    for kind, expected in (("md", "| tiny | photós | 3 |"), ("csv", "tiny,photós,")):
        code, out, _ = run_on("ascii", monkeypatch, *TABLE[:-2], "--format", kind)
        assert expected in out.decode("utf-8")


def test_images_and_comparisons_are_printed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del photos
    attack = ["-q", "attack", "photós/thé/x.png", "--classes", ",".join(NAMES), "--label", "猫", "--attack", "pgd-1"]
    code, out, _ = run_on("ascii", monkeypatch, *attack)
    assert code == 0
    assert b"| ?? " in out  # as wide as it is elsewhere
    data = ["-d", "photós", "--attack", "none", "--no-store"]
    code, out, _ = run_on("ascii", monkeypatch, "-q", "compare", "tiny", "tiny#normalization=imagenet", *data)
    assert code in (0, 1)
    assert b" > " in out  # an arrow
    for command in (["list", "models"], ["list", "methods"], ["list", "datasets"], ["inspect", "tiny"]):
        assert run_on("ascii", monkeypatch, *command)[0] == 0


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"phot\\xf3z"), ("latin-1", "photóz".encode("latin-1"))])
def test_errors_and_help_are_shown_as_far_as_they_can_be(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run_on(encoding, monkeypatch, "bench", "-d", "photóz")
    assert (code, out) == (2, b"")
    assert err.startswith(b"Error: " + shown)
    assert err.count(b"\n") == 1
    code, out, err = run_on(encoding, monkeypatch, "bench", "--help")
    assert (code, err) == (0, b"")
    assert b"--eps-mode" in out


def test_an_argument_that_is_no_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-d", "phot\udce9s"]) == 2
    assert capsys.readouterr().err == "Error: the argument 'phot\\udce9s' is not UTF-8; rename what it names.\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_class_folder_whose_name_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"caf\xe9", b"dog"):
        folder = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - pathlib has no bytes
        os.mkdir(folder)  # noqa: PTH102
        Image.new("RGB", (8, 8)).save(Path(os.fsdecode(folder)) / "x.png")
    assert run(["bench", "-d", str(tmp_path), "--no-store"]) == 2
    assert "is not UTF-8; rename it" in capsys.readouterr().err


def test_every_file_is_read_and_written_as_utf8() -> None:
    """`read_text`, `write_text` and text-mode `open` name their encoding: the locale's is another one elsewhere."""
    for path in Path(clipguard.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            mode = next(
                (a.value for a in node.args[:2] if isinstance(a, ast.Constant) and a.value in ("r", "w", "a")), ""
            )
            of_path = isinstance(node.func, ast.Attribute) and called in ("read_text", "write_text")
            if of_path or (called in ("open", "fdopen") and mode):
                assert "encoding" in [k.arg for k in node.keywords], f"{path}:{node.lineno}"
