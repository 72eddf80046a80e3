"""Command lines in processes of their own, forked from one that has imported everything: at once, not in six seconds.

That one starts with the first command line of a test session and ends with the session.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import clipguard

HEAVY = [
    "benchmark.runner",
    "adversarial.generate",
    "finetuning.run",
    "finetuning.merge",
    "models.convert",
    "reporting.page",
]


class Started:
    """`clipguard LINE` at work in a folder, with a file for each stream. It heeds Ctrl-C, whoever runs the tests.

    environment: variables beside those of the tests; torch has as many threads as OMP_NUM_THREADS says, or one.
    at: when it begins, in seconds since the epoch.
    constants: values of constants, functions and methods there, such as {"clipguard.module.NAME": 1}.
    """

    def __init__(
        self,
        line: list[str],
        folder: Path,
        streams: Path,
        environment: dict[str, str] | None = None,
        *,
        at: float = 0.0,
        constants: dict[str, Any] | None = None,
    ) -> None:
        self.out, self.err = (streams.with_name(f"{streams.name}.{name}") for name in ("out", "err"))
        for path in (self.out, self.err):
            path.write_text("")
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        work = (line, str(folder), str(self.out), str(self.err), variables, at, constants or {})
        self.process: BaseProcess = server().Process(target=_work, args=work)  # type: ignore[attr-defined]
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Its exit code, negative for a signal."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still at work after {timeout} s: {self.err.read_text()}")
        return self.process.exitcode

    def lines(self) -> Iterator[str]:
        """Lines of stderr as they come, until it ends."""
        with self.err.open(encoding="utf-8") as file:
            left = ""
            while True:
                ended = self.process.exitcode is not None
                left += file.read()
                *whole, left = left.split("\n")
                yield from (f"{line}\n" for line in whole)
                if ended:
                    break
                time.sleep(0.01)
            if left:
                yield left


@cache
def server() -> ForkServerContext:
    """The context whose processes are forks of the one with the imports, once it has them."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["pytest", __name__, *(f"clipguard.{name}" for name in HEAVY)])
    kept = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    places = [str(Path(clipguard.__file__).parents[1]), str(Path(__file__).parent), kept["PYTHONPATH"]]
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, places)), OMP_NUM_THREADS="1")
    try:
        first = context.Process(target=_nothing)
        first.start()
        first.join()
        assert first.exitcode == 0, "the process with the imports does not start"
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    return context


def _nothing() -> None:
    """What the first process does."""
    missing = [name for name in HEAVY if f"clipguard.{name}" not in sys.modules]
    assert not missing, missing


def _work(
    line: list[str], folder: str, out: str, err: str, variables: dict[str, str], at: float, constants: dict[str, Any]
) -> NoReturn:
    code: Any = 99
    try:
        import torch

        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
        for name, value in constants.items():
            place, _, constant = name.rpartition(".")
            setattr(pkgutil.resolve_name(place), constant, value)
        sys.argv = ["clipguard", *line]
        time.sleep(max(0.0, at - time.time()))
        from clipguard.cli import main

        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
