"""Where runs write: a folder or a file that one run takes at its start, so that no other writes there meanwhile.

A run that is refused has touched nothing. Files are written whole or not at all (`atomic_files.py`); who holds what is
told by lock files (`locks.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from clipguard.core.errors import OutputError
from clipguard.core.files.atomic_files import is_part, try_to_write, write_bytes
from clipguard.core.files.locks import InUseError, Lock, in_use, is_held, is_ours

if TYPE_CHECKING:
    from typing_extensions import Self

LOCK = ".clipguard.lock"
RUNS = Path("runs")
ATTEMPTS = 100  # to make a folder that other runs, which had made it in vain, remove again


class TakenError(OutputError):
    """A place that holds something already."""


class _Hold:
    """What a run has taken: a lock, and folders that it made, which go away again if they stay empty."""

    def __init__(self) -> None:
        self.lock: Lock | None = None
        self.made: list[Path] = []
        self._process = os.getpid()

    def release(self) -> None:
        if self._process != os.getpid():  # a forked child has none of it
            return
        if self.lock is not None:
            self.lock.release()
        remove_empty(self.made)


class OutputFolder:
    """A folder that is this run's alone, from its making to `release`, the end of the `with` block or of the process.

    An empty folder that this run made goes away again if nothing was written.
    """

    def __init__(self, path: Path, *, option: str = "`out`", whole: bool = False, must_make: bool = False) -> None:
        """Take a folder that is not there, that is empty, or that `may_go_on` accepts.

        Args:
            path: the folder; those above it are made, too.
            option: what named it, for messages.
            whole: after an error in the `with` block, what was written goes away again.
            must_make: it must not be there at all.

        Raises:
            TakenError: if the folder holds something.
            InUseError: if it is a living run's.
            OutputError: if it cannot be written.
        """
        self.path, self._what, self._whole = path, f"{option} {path}", whole
        self._written: list[Path] = []
        self._hold = _Hold()
        self.release = weakref.finalize(self, self._hold.release)
        with _undone_by_errors(self._what, self.release):
            self._take(must_make)

    @classmethod
    def by_default(cls, name: str, prefix: str = "", **options: Any) -> Self:
        """A new `runs/20260102-030405-tiny`, with a prefix such as `attack-` before the name; taken: `...-tiny-2`."""
        for path in default_names(name, prefix):
            with contextlib.suppress(TakenError, InUseError):
                return cls(path, must_make=True, **options)
        raise AssertionError  # there is no last name

    def _take(self, must_make: bool) -> None:
        if os.path.lexists(self.path):
            if must_make:
                raise TakenError(f"{self._what} exists already.")
            if not self.path.is_dir():
                raise TakenError(f"{self._what} exists already and is no folder; nothing is overwritten. Name another.")
            self._require_free()  # before anything is touched
        if not make_folders(self.path, self._hold.made) and must_make:
            raise TakenError(f"{self._what} exists already.")
        self._hold.lock = _lock_in(self.path, LOCK, self._what, self._hold.made)
        require_no_run_in(self.path.parent, self._what)
        self._require_free()  # nobody else writes here from now on
        for part in [path for path in self.path.iterdir() if is_part(path.name)]:
            part.unlink(missing_ok=True)  # a killed run's

    def may_go_on(self) -> bool:
        """Whether what the folder holds is what this run goes on with, and so would not lose."""
        return False

    def _require_free(self) -> None:
        if self._hold.lock is None and is_held(self.path / LOCK):
            raise in_use(self._what, self.path / LOCK)
        names = {entry.name for entry in self.path.iterdir()} - {LOCK}
        if any(not is_part(name) for name in names) and not self.may_go_on():
            raise TakenError(f"{self._what} exists already; nothing is overwritten. Name a new folder.")

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Write files, one after the other, each whole or not at all (see `atomic_files.py`).

        Args:
            files: content by name, a relative path such as `png/0.png`; a folder in it is made, and must not be there.

        Raises:
            OutputError: if the disk does not take them; those before stay, unless the folder is `whole`.
        """
        try:
            for name, content in files.items():
                for folder in reversed(Path(name).parents[:-1]):
                    self._make(self.path / folder)
                self._written.append(self.path / name)
                write_bytes(self.path / name, content)
        except OSError as error:
            raise OutputError(f"Cannot write to {self.path}: {error.strerror or error}.") from error

    def _make(self, folder: Path) -> None:
        """A folder inside; one that is there already may be another run's."""
        if folder not in self._written:
            folder.mkdir()
            self._written.append(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._whole:
            for path in reversed(self._written):
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
        self.release()


class OutputFile:
    """One file that is this run's alone to write: a new one; or with `replace` perhaps one in an older one's place.

    Of several runs that replace a file at once, the file is that of whichever ends last, and whole.
    """

    def __init__(self, path: Path, *, option: str = "`out`", replace: bool = False) -> None:
        """Take a file that is not there, or with `replace` any ordinary file.

        Args:
            path: the file; the folders above it are made.
            option: what named it, for messages.
            replace: a file that is there is replaced.

        Raises:
            TakenError: if a new file exists, or what is to be replaced is no ordinary file.
            InUseError: if a living run makes it.
            OutputError: if it cannot be written.
        """
        self.path, self._what, self._replace = path, f"{option} {path}", replace
        hold = _Hold()
        self.release = weakref.finalize(self, hold.release)
        with _undone_by_errors(self._what, self.release):
            self._require_free()
            make_folders(path.parent, hold.made)
            if replace:
                try_to_write(path)
            else:
                hold.lock = _lock_in(path.parent, f".{path.name}.lock", self._what, hold.made)
            require_no_run_in(path.parent, self._what)
            self._require_free()

    def _require_free(self) -> None:
        if self.path.is_dir():
            raise TakenError(f"{self._what} is a folder; name a file.")
        if self._replace and self.path.exists() and not self.path.is_file():
            raise TakenError(f"{self._what} is no ordinary file; name another.")
        if not self._replace and os.path.lexists(self.path):
            raise TakenError(f"{self._what} exists already; nothing is overwritten. Name a new file.")

    def write(self, content: bytes) -> None:
        """Write it, whole or not at all.

        Raises:
            OutputError: if the disk does not take it.
        """
        try:
            write_bytes(self.path, content)
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {error.strerror or error}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def _undone_by_errors(what: str, undo: Callable[[], object]) -> Iterator[None]:
    """Undo, and say an OSError as OutputError."""
    try:
        yield
    except BaseException as error:
        undo()
        if isinstance(error, OSError):
            raise OutputError(f"{what} cannot be written ({error.strerror}); name another.") from None
        raise


def require_no_run_in(folder: Path, what: str) -> None:
    """Raise OutputError if another living run has taken this folder, in which `what` would be."""
    if is_held(folder / LOCK) and not is_ours(folder / LOCK):
        raise OutputError(f"{what} is inside a folder of another run: {in_use(str(folder), folder / LOCK)}")


def default_names(name: str, prefix: str = "") -> Iterator[Path]:
    """`runs/20260102-030405-tiny`, or with a prefix such as `attack-` before the name; then `...-tiny-2` and so on."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{prefix}{slug or 'run'}"
    yield RUNS / stem
    yield from (RUNS / f"{stem}-{number}" for number in count(2))


def make_folders(path: Path, made: list[Path]) -> bool:
    """Make a folder and those above it, which are added to `made`; whether it was this call that made the last one."""
    for _ in range(ATTEMPTS):
        try:
            for folder in [*reversed(path.parents), path]:
                with contextlib.suppress(FileExistsError):
                    if not folder.is_dir():
                        folder.mkdir()
                        made.append(folder)
        except FileNotFoundError as error:  # another run has just removed one that it had made in vain
            remove_empty(made)
            gone = error
            continue
        return path in made
    raise gone


def _lock_in(folder: Path, name: str, what: str, made: list[Path]) -> Lock:
    """A lock in a folder, which is made again if another run that had made it in vain has just removed it."""
    for _ in range(ATTEMPTS):
        try:
            return Lock(folder / name, what)
        except FileNotFoundError as error:
            gone = error
            make_folders(folder, made)
    raise gone


def remove_empty(made: list[Path]) -> None:
    """Remove folders, the last one first, as far as they are empty."""
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()
    made.clear()
