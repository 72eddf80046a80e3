"""This process among those that train together: which part of the work is its own, and what all decide alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from clipguard.core.errors import ClipguardError, FinetuneError, ToldElsewhereError

T = TypeVar("T")
FOLDER = "folder"  # key of the launcher's store


@dataclass(frozen=True)
class Team:
    """This process among those that train together.

    Attributes:
        rank, size: which of how many.
        store: the launcher's, which outlives processes that it starts again; None: nobody starts them again.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """Which of n things are this process's: the parts of all, in order, are the whole; none is larger by two."""
        each, more = divmod(n, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def share(self, value: T | None) -> T:
        """The main process's value, on all."""
        values: list[Any] = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        shared: T = values[0]
        return shared

    def gather(self, value: T) -> list[T]:
        """Each process's value, on all."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits on all, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def highest(self, number: int) -> int:
        """The highest number of any process. No GPU is waited for."""
        if self.size == 1:
            return number
        highest = torch.tensor(number)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Do something that each process does: where one cannot, all raise its error, and none waits for another.

        Inside, no process may wait for another.
        """
        error: ClipguardError | None = None
        try:
            yield
        except ClipguardError as raised:
            error = raised
        said = self.gather(None if error is None else str(error))
        first = next((rank for rank, text in enumerate(said) if text is not None), None)
        if first is None:
            return
        if not self.main:
            raise ToldElsewhereError(str(said[first]))
        raise error or FinetuneError(f"Process {first}: {said[first]}")

    def require_the_same(self, value: str, what: str) -> None:
        """Raise FinetuneError where another process has another value; `what` it is, for the message."""
        values = self.gather(value)
        other = next((rank for rank, theirs in enumerate(values) if theirs != values[0]), None)
        with self.agree():
            if other is not None:
                raise FinetuneError(f"Process {other} has another {what} than process 0: give all of them the same.")

    def remember(self, folder: Path) -> None:
        """Let processes that the launcher starts in place of these know which folder the run has."""
        if self.store is not None:
            self.store.set(FOLDER, str(folder.absolute()))

    def remembered(self) -> Path | None:
        """The folder of the run whose processes the launcher has started again as these; on all."""
        found = None
        if self.main and self.store is not None and self.store.check([FOLDER]):
            found = Path(self.store.get(FOLDER).decode())
        return self.share(found)


ALONE = Team()
