"""Standard streams that are closed, full or no longer read, and the signal to end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from types import FrameType

from clipguard.core.environment.launcher import has_launcher
from clipguard.core.errors import OutputError

INTERRUPTED, PIPE_CLOSED = 128 + signal.SIGINT, 128 + signal.SIGPIPE
_received: list[int] = []  # signals that end the command
_process = os.getpid()


def prepare() -> None:
    """Heed SIGTERM like Ctrl-C, and see that no file takes the number of a closed stream."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and os.environ.get("RANK", "0") in ("", "0"):
        signal.signal(signal.SIGTERM, _end)  # helpers of torchrun end at once
    logging.raiseExceptions = False  # a log line that cannot be written is no error
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            while os.open(os.devnull, os.O_RDWR) < number:  # takes the lowest that is free
                pass
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def heed_no_more() -> None:
    """The command has ended: signals that come now find nothing to interrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


def require_stdout() -> None:
    """Raise OutputError if there is nowhere to print results."""
    if sys.stdout is None:
        raise OutputError("The standard output is closed, and results go there; leave out >&-, or write > /dev/null.")


def require_folder() -> None:
    """Raise OutputError if the working directory is gone: relative paths, such as runs/, mean nothing there."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise OutputError(f"The working directory is gone ({error.strerror}); cd to one that exists.") from None


def flush() -> None:
    """Write out what was printed. Raises OSError."""
    if sys.stdout is not None:
        sys.stdout.flush()


def drop_output() -> None:
    """Let what could not be printed be lost, so that it is not tried again at exit."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    except (OSError, ValueError, AttributeError):
        pass  # none to drop


def say(line: str) -> None:
    """A line on stderr, if there is one."""
    if sys.stderr is None:
        return  # print would take stdout
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def stdout_fails() -> bool:
    """Whether nothing more can be printed: a failed write does not say of which file it was."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


def tell_interruption() -> int:
    """Say what ended the command, and return the exit code that is customary for that."""
    terminated = signal.SIGTERM in _received
    if not has_launcher():
        say("Terminated." if terminated else "Interrupted.")
    return 128 + signal.SIGTERM if terminated else INTERRUPTED


def was_interrupted() -> bool:
    """Whether a signal to end has come; in the middle of an import, say, it may surface as any exception."""
    return bool(_received)


def is_closed_pipe(error: BaseException | None) -> bool:
    """Whether whoever read the output has gone, as `head` does."""
    while error is not None:
        if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            return True
        error = error.__context__
    return False


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if number == signal.SIGTERM and os.getpid() != _process:  # a forked worker
        os._exit(128 + number)
    _received.append(number)
    raise KeyboardInterrupt
