"""Ctrl-C during training: it waits for the end of a step, so that a checkpoint can be written."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("clipguard")


@contextmanager
def interruptible(*, helper: bool = False) -> Iterator[Callable[[], int]]:
    """Let Ctrl-C wait for the end of a step, to be asked about there (its number, or 0); a second one does not wait.

    SIGTERM is treated alike where it has a handler, as on the command line, and in a helper of another process.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not callable(before[signal.SIGTERM]) and not helper:
        del before[signal.SIGTERM]

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop_soon(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        pressed.append(number)
        restore()
        log.info("Stopping after this step; Ctrl-C again stops at once")

    for number in before:
        signal.signal(number, stop_soon)
    try:
        yield lambda: pressed[0] if pressed else 0
    finally:
        restore()


def raise_interrupt(number: int) -> None:
    """What the signal would have done when it came. Raises KeyboardInterrupt, unless a handler raises another."""
    if callable(signal.getsignal(number)):
        signal.raise_signal(number)
    raise KeyboardInterrupt
