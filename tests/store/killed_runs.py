"""Runs of `clipguard bench` that are killed. Each writes a segment as often as it can."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

from forked import Started

CONSTANTS = {"clipguard.benchmark.stored.session.FLUSH_SECONDS": 0.0}
END = 900  # seconds


def start(arguments: list[str], streams: Path) -> Started:
    """A run at work; the last of its arguments is the folder of its results."""
    return Started(arguments, streams.parent, streams, constants=CONSTANTS)


def both(arguments: list[str], streams: Path) -> list[int]:
    """Exit codes of two runs at once, the second into a folder with a 2 behind its name."""
    first = start(arguments, streams)
    second = start([*arguments[:-1], f"{arguments[-1]}2"], streams.with_name(f"{streams.name}2"))
    return [run.wait(END) for run in (first, second)]


def killed(arguments: list[str], streams: Path, kills: int) -> list[int]:
    """Exit codes, negative for signals: of as many killed runs, each of which had begun, then of one that ends.

    Moments are random, and later the more was done already.
    """
    draw, out, longest = random.Random(7), Path(arguments[-1]), 2.0
    codes = []
    for _ in range(kills):
        while (code := _kill(start(arguments, streams), draw.uniform(0, longest))) != -signal.SIGKILL:
            assert code == 0, streams.with_name(f"{streams.name}.err").read_text()
            shutil.rmtree(out)  # it was done: what is stored stays, and the next one is killed sooner
            longest *= 0.7
        codes.append(code)
    return [*codes, start(arguments, streams).wait(END)]


def _kill(run: Started, delay: float) -> int:
    """Kill a run after so many seconds, unless it has ended; its exit code."""
    run.process.join(delay)
    run.send_signal(signal.SIGKILL)
    return run.wait(END)
