"""Progress on stderr: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clipguard.cli.console.terminal import echo

EVERY = 30.0  # seconds between lines where there are no bars
log = logging.getLogger("clipguard")


class RichProgress:
    """One line a stretch of work: what, how much of it, a note, time taken and left.

    Off a terminal, as in the log of a CI job, a line every `every` seconds (default: `EVERY`), and one at the end of a
    stretch that had some. Nothing where the log is off. A stretch that is started again goes on, or begins anew if it
    was done.
    """

    def __init__(self, every: float | None = None) -> None:
        console = Console(stderr=True)
        wanted = log.isEnabledFor(logging.INFO)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal or not wanted,
        )
        self._tasks: dict[str, TaskID] = {}
        self._task: TaskID | None = None
        self._every = EVERY if every is None else every
        self._over, self._said = threading.Event(), False  # whether a line was said of this stretch
        # A thread: one image may take longer than that.
        self._teller = threading.Thread(target=self._tell, daemon=True) if wanted and not console.is_terminal else None

    def __enter__(self) -> RichProgress:
        self._bars.start()
        if self._teller:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        self._over.set()
        if self._teller:
            self._teller.join()

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            self._say()

    def _say(self) -> None:
        """How far the stretch under way is, on a line."""
        task = next((task for task in self._bars.tasks if task.id == self._task), None)
        if task is None or task.finished:  # which `advance` has told, or was over too soon
            return
        self._write(task)

    def _write(self, task: Task) -> None:
        note = f", {task.fields['note']}" if task.fields["note"] else ""
        done = f"{task.completed:,.0f} of {task.total or 0:,.0f}"
        self._said = True
        echo(f"{task.description}: {done}{note}, {task.elapsed or 0:.0f} s", err=True)

    def start(self, what: str, total: int) -> None:
        """A stretch of work begins."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, note="")
        elif self._bars.tasks[self._bars.task_ids.index(self._tasks[what])].finished:
            self._bars.reset(self._tasks[what], total=total)
        self._task, self._said = self._tasks[what], False

    def advance(self, note: str = "") -> None:
        """One more image or step is done; without a note the last one stays."""
        if self._task is not None:
            self._bars.update(self._task, advance=1)
            if note:
                self._bars.update(self._task, note=note)
            task = self._bars.tasks[self._bars.task_ids.index(self._task)]
            if self._said and task.finished:
                self._write(task)
