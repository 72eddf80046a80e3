"""Runs of `clipguard bench` that are killed: `python killed_runs.py MODE ARGUMENT... --out OUT`.

Each run is a fork of one process that has everything imported, so that it takes a second and not five. Prints "exit"
and the exit code of each, negative for signals.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

import clipguard.benchmark.runner
import clipguard.benchmark.stored.session
import clipguard.cli.console.progress
from clipguard.cli import run


def start(arguments: list[str]) -> int:
    """The process of a run that writes a segment as often as it can."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)
        clipguard.benchmark.stored.session.FLUSH_SECONDS = 0.0
        os._exit(run(arguments))
    return process


def end(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill(process: int, delay: float) -> bool:
    """Kill a process after so many seconds, and tell whether it was still at work."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    return end(process) == -signal.SIGKILL


def main(mode: str, arguments: list[str]) -> None:
    """`both`: two runs at once, the second into OUT2. A number: that many kills, each of a run that had begun, then a
    run that ends. Moments are random, and later the more was done already.
    """
    if mode == "both":
        processes = [start(arguments), start([*arguments[:-1], f"{arguments[-1]}2"])]
        print(*(f"exit {end(process)}" for process in processes), sep="\n")
        return
    draw, out, longest = random.Random(7), Path(arguments[-1]), 2.0
    for _ in range(int(mode)):
        while not kill(start(arguments), draw.uniform(0, longest)):
            shutil.rmtree(out)  # it was done: what is stored stays, and the next one is killed sooner
            longest *= 0.7
        print(f"exit {-signal.SIGKILL}", flush=True)
    print(f"exit {end(start(arguments))}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
