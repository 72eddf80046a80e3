"""Progress bars on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RichProgress:
    """One line a stretch of work: what, how much of it, a note, time taken and left. Silent off a terminal.

    A stretch that is started again goes on, or begins anew if it was done.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._task: TaskID | None = None

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, what: str, total: int) -> None:
        """A stretch of work begins."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, note="")
        elif self._bars.tasks[self._bars.task_ids.index(self._tasks[what])].finished:
            self._bars.reset(self._tasks[what], total=total)
        self._task = self._tasks[what]

    def advance(self, note: str = "") -> None:
        """One more image or step is done; without a note the last one stays."""
        if self._task is not None:
            self._bars.update(self._task, advance=1)
            if note:
                self._bars.update(self._task, note=note)
