"""Command lines that start at the same moment, each in a process of its own, forked once modules are imported.

As a script: reads a JSON list of groups from stdin, each a list of [arguments, environment], and prints for each a list
of [exit code, stdout, stderr]. A group starts when the one before has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

HEAVY = [
    "benchmark.runner",
    "adversarial.generate",
    "finetuning.run",
    "finetuning.merge",
    "models.convert",
    "reporting.page",
]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def race(folder: Path, *groups: list[list[str]], environments: list[dict[str, str]] | None = None) -> list[list[Ended]]:
    """Run the command lines of a group at once in a folder, group by group; how each ended, in their order."""
    work = [list(zip(lines, environments or [{}] * len(lines), strict=True)) for lines in groups]
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(work),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return [[Ended(*end) for end in ends] for ends in json.loads(done.stdout)]


def _child(arguments: list[str], environment: dict[str, str], start: float, files: list[Path]) -> NoReturn:
    code = 99
    try:
        from clipguard.cli import run

        for number, path in zip((1, 2), files, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.environ.update(environment)
        sys.argv = ["clipguard", *arguments]
        time.sleep(max(0.0, start - time.time()))
        code = run(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main() -> None:
    for name in HEAVY:
        importlib.import_module(f"clipguard.{name}")
    print(json.dumps([_at_once(work) for work in json.loads(sys.stdin.read())]))


def _at_once(work: list[tuple[list[str], dict[str, str]]]) -> list[list[object]]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.time() + 0.5
        started = []
        for number, (arguments, environment) in enumerate(work):
            files = [Path(folder, f"{number}.{stream}") for stream in ("out", "err")]
            process = os.fork()
            if process == 0:
                _child(arguments, environment, start, files)
            started.append((process, files))
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process, _ in started]
        texts = [[path.read_text() for path in files] for _, files in started]
    return [[code, *text] for code, text in zip(codes, texts, strict=True)]


if __name__ == "__main__":
    _main()
