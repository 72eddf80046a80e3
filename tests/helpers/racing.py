"""Command lines that start at the same moment, each in a process of its own."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from forked import Started, server


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def race(folder: Path, *groups: list[list[str]], environments: list[dict[str, str]] | None = None) -> list[list[Ended]]:
    """Run the command lines of a group at once in a folder, group by group; how each ended, in their order."""
    return [_at_once(folder, lines, environments or [{}] * len(lines)) for lines in groups]


def _at_once(folder: Path, lines: list[list[str]], environments: list[dict[str, str]]) -> list[Ended]:
    server()
    with tempfile.TemporaryDirectory() as name:
        start = time.time() + 0.5
        started = [
            Started(line, folder, Path(name, str(number)), environment, at=start)
            for number, (line, environment) in enumerate(zip(lines, environments, strict=True))
        ]
        codes = [command.wait(600) for command in started]
        return [Ended(code, s.out.read_text(), s.err.read_text()) for code, s in zip(codes, started, strict=True)]
