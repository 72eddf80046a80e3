"""A lock file that one living process holds: of runs that want one folder or one file, one gets it.

The lock (`flock`) goes with its process, however that ends, so what a killed run leaves never stands in the way. Where
a file system has no locks, the file itself is the lock of whoever made it; a killed run's has to be removed by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from clipguard.core.errors import OutputError

PATIENCE_SECONDS = 0.5  # in which who has just taken a lock says so, or who only looked at it has let go
_held: set[int] = set()  # descriptors of the lock files that this process holds


class InUseError(OutputError):
    """What another run has taken and may still be writing to."""


class Lock:
    """Held from its making to `release`, or to the end of the process; a forked child does not hold it."""

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock, or say who has it.

        Args:
            path: the lock file, which is made.
            what: it stands for, for messages.

        Raises:
            InUseError: which begins with `what` and names the holder.
            OSError: where no file can be made.
        """
        self.path = path
        self._process = os.getpid()
        until = time.monotonic() + PATIENCE_SECONDS
        while not self._try():
            holder = _read_holder(path)
            if (holder and _may_live(*holder)) or time.monotonic() > until:
                raise in_use(what, path)
            time.sleep(PATIENCE_SECONDS / 50)

    def _try(self) -> bool:
        descriptor, made = _open(self.path)
        try:
            if _lock(descriptor, fcntl.LOCK_EX, made) and _is_at(self.path, descriptor):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                self._descriptor = descriptor
                _held.add(descriptor)
                return True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return False

    def release(self) -> None:
        """Let go, and remove the file."""
        if self._descriptor not in _held or self._process != os.getpid():
            return
        with contextlib.suppress(OSError):
            if _is_at(self.path, self._descriptor):
                self.path.unlink()
        _held.discard(self._descriptor)
        os.close(self._descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process holds this lock file; there need not be one."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH, made=False)  # many may look at once
    finally:
        os.close(descriptor)


def is_ours(path: Path) -> bool:
    """Whether it is this process that holds a lock file."""
    return _read_holder(path) == (os.getpid(), socket.gethostname())


def in_use(what: str, path: Path) -> InUseError:
    """The error that says who has taken `what`, by its lock file."""
    until = time.monotonic() + PATIENCE_SECONDS
    while (holder := _read_holder(path)) is None and time.monotonic() < until:
        time.sleep(PATIENCE_SECONDS / 50)  # who has just taken it says so at once
    if holder and holder[1] == socket.gethostname() and _may_live(*holder):
        who = f"process {holder[0]}"
    else:  # elsewhere, or a file system without locks
        who = f"process {holder[0]} on {holder[1]}" if holder else "another process"
        who += f"; if it is none any more, remove {path}"
    return InUseError(f"{what} belongs to a run that is under way ({who}). Name another, or wait for its end.")


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether the file was made by this call."""
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), True
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), False


def _lock(descriptor: int, kind: int, made: bool) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return made
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file is still there, and has not been removed by whoever held the lock before."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read_holder(path: Path) -> tuple[int, str] | None:
    """Process and host that a lock file names."""
    try:
        process, host = path.read_text(encoding="utf-8").split()
        return int(process), host
    except (OSError, ValueError):
        return None


def _may_live(process: int, host: str) -> bool:
    if host != socket.gethostname():
        return True  # who knows
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # someone else's
    return True


def _let_go_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
