"""Golden runs: what the commands print and write, to the byte, so that a change which should change nothing is seen to.

`python tests/golden/runs.py --record` runs the commands of golden_commands.py and writes what they left into
tests/golden/record, a file a command; test_golden.py compares. Record again only for a change that is meant to change
what users have, and name that reason in CHANGELOG.md. `--out FOLDER` writes elsewhere, `--native` runs with the kernels
that libraries choose for this processor, and `--sums` prints a hash a command instead.

Everything goes through `python -m clipguard` and the files that users have, so that the package can be taken apart
without touching this. The commands run in one process, in a new folder with a home and caches of its own, and with
kernels that every x86-64 processor has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import golden_text
from golden_commands import Command, commands, write_inputs
from golden_text import Canonical, Section, sha

RECORD = Path(__file__).with_name("record")
MADE_WITH = "made-with.txt"
# Whatever computes a number or draws it.
PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "timm", "pyautoattack", "accelerate", "safetensors", "transformers"),
    *("numpy", "scipy", "pandas", "pyarrow", "pillow", "matplotlib", "datasets", "typer", "rich", "jinja2"),
)
KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Prescott",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-FMA,-FMA_Usable,-FMA4,-FMA4_Usable,-AVX512F",
}
LOG_LINE = re.compile(r"(INFO|WARNING|ERROR|CRITICAL) |Error: |Usage|::|Stopped|Interrupted|Traceback")


def in_order_of_cells(listing: str) -> str:
    """What `store ls` prints, without the order of writing: cells of one second come in any."""
    if listing.startswith("["):
        return json.dumps(sorted(json.loads(listing), key=lambda cell: str(cell["cell"])), indent=2) + "\n"
    return "\n".join(sorted(listing.splitlines())) + "\n"


def processor() -> str:
    """Its name and a hash of its features, by which libraries choose kernels, also those that nobody can set."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    features = " ".join(sorted(named.get("flags", "").split()))
    return f"{named.get('model name', platform.processor())} {sha(features.encode())}"


def made_with() -> str:
    """Versions of what computes numbers here, a line each."""
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join([f"processor {processor()}", python, *(f"{name} {version(name)}" for name in PACKAGES)]) + "\n"


def make_record(out: Path, *, native: bool = False) -> None:
    """Run all commands in a process of its own, and write a file for each into `out`.

    native: with the kernels of this processor, whose bits others do not have.
    """
    spec = importlib.util.find_spec("clipguard")
    assert spec is not None
    assert spec.origin is not None
    code = Path(spec.origin).resolve().parents[1]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
        environment = {
            **kept,
            **({} if native else KERNELS),
            "PYTHONPATH": str(code),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(place / "home"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "100",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        command = [sys.executable, __file__, "--child", str(place), "--out", str(out.resolve())]
        subprocess.run(command, check=True, env=environment, cwd=place)


def run_all(place: Path, out: Path) -> None:
    """Run all commands in this process, in a folder `work` of `place`."""
    sys.path.append(str(Path(__file__).parents[1] / "helpers"))
    from shared_vocabulary import shared_vocabulary  # and with it open_clip, which takes seconds

    work = place / "work"
    work.mkdir()
    write_inputs(work)
    os.chdir(work)
    clock = time.monotonic
    time.monotonic = lambda: clock() / 100  # nothing is written early because the machine is slow
    canonical = Canonical(work, Path(os.environ["PYTHONPATH"]))
    known: dict[tuple[str, int, int, int, int], str] = {}
    with shared_vocabulary():
        for command in commands():
            if command.before:
                command.before(work)
            sections = run_one(command, work, canonical, known)
            file = out / f"{command.name}.txt"
            file.write_text("".join(section.text() for section in sections), encoding="utf-8")


def run_one(
    command: Command, work: Path, canonical: Canonical, known: dict[tuple[str, int, int, int, int], str]
) -> list[Section]:
    """Run a command, and say what it printed, wrote and removed. known: hashes that files had."""
    before = snapshot(work, known)
    with streams(work.parent) as (stdout, stderr):
        code = run_line(command.line)
    after = snapshot(work, known)
    changed = {name: work / name for name, content in after.items() if before.get(name) != content}
    files = file_sections(work, changed, canonical)
    removed = sorted({canonical.text(name) for name in before.keys() - after.keys()})
    said = [line for line in stderr.read_text(encoding="utf-8").splitlines() if LOG_LINE.match(line)]
    text = stdout.read_text(encoding="utf-8")
    if command.name.startswith("store-ls"):
        text = in_order_of_cells(text)
    printed = canonical.stream("stdout", text, changed)
    return [
        Section(f"clipguard {command.line}", "text", (f"exit {code}",)),
        *([printed] if printed.lines else []),
        *([canonical.log(said)] if said else []),
        *files,
        *([Section("removed", "text", tuple(removed))] if removed else []),
    ]


def run_line(line: str) -> int:
    """The exit code of `python -m clipguard LINE`."""
    arguments, sys.argv = sys.argv, ["clipguard", *shlex.split(line)]
    try:
        runpy.run_module("clipguard", run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = arguments
    return 0


@contextlib.contextmanager
def streams(place: Path) -> Iterator[tuple[Path, Path]]:
    """Let stdout and stderr go to two files, also what libraries write past Python."""
    files = place / "stdout", place / "stderr"
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number, file in zip((1, 2), files, strict=True):
            opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
            os.close(opened)
        yield files
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, number)
            os.close(saved)


def snapshot(work: Path, known: dict[tuple[str, int, int, int, int], str]) -> dict[str, str]:
    """The files in a folder, with hashes of their content. known: hashes by name, inode, size and times."""
    found = {}
    for path in work.rglob("*"):
        if path.is_file():
            name, now = path.relative_to(work).as_posix(), path.stat()
            key = name, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
            if key not in known:
                known[key] = sha(path.read_bytes())
            found[name] = known[key]
    return found


def file_sections(work: Path, changed: dict[str, Path], canonical: Canonical) -> list[Section]:
    """What is in the files; the segments of a store's cell are one."""
    sections, cells = [], {}
    for name, path in sorted(changed.items()):
        if path.suffix == ".parquet" and path.parent.parent.name == "cells":
            cells.setdefault(path.parent.relative_to(work).as_posix(), []).append(path)
        else:
            sections.append(canonical.file(name, path))
    return sections + [golden_text.cell_section(name, paths) for name, paths in sorted(cells.items())]


def sums(folder: Path) -> str:
    """A hash a command."""
    return "".join(f"{sha(file.read_bytes())} {file.stem}\n" for file in sorted(folder.glob("*.txt")))


def main() -> None:
    """Read the options and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the record that the test compares with")
    parser.add_argument("--out", type=Path, help="write a record into this folder")
    parser.add_argument("--native", action="store_true", help="with the kernels of this processor")
    parser.add_argument("--sums", action="store_true", help="print a hash a command")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_all(options.child, options.out)
        return
    if not options.record and not options.out and not options.sums:
        parser.error("--record, --out or --sums?")
    if options.record and options.native:
        parser.error("what is recorded must be the same everywhere; --native goes with --out or --sums")
    with tempfile.TemporaryDirectory() as name:
        out = RECORD if options.record else options.out or Path(name)
        for old in out.glob("*.txt"):
            old.unlink()
        make_record(out, native=options.native)
        (out / MADE_WITH).write_text(made_with())
        if options.sums:
            print(sums(out), end="")


if __name__ == "__main__":
    main()
