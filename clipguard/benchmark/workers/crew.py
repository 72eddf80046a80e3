"""The actors of a run: which start, which are there, and what follows when one dies, or when none comes."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from typing import Any, NamedTuple

import ray
import ray.exceptions

from clipguard.benchmark.run_record import Place
from clipguard.benchmark.workers.remote import RemoteWorker
from clipguard.core.errors import ClipguardError, first_line

FAILED_STARTS = 3  # in a row, after which a worker is given up
PATIENCE_SECONDS = 20.0  # without a worker before that is said
MOST_SECONDS = 900.0  # without a worker before the run ends: clusters that grow take minutes
LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError)
log = logging.getLogger("clipguard")


class _Start(NamedTuple):
    """An actor that starts, and how often it failed to before."""

    worker: Any
    failures: int


class Crew:
    """Actors, each with what it asks of the cluster.

    Ray restarts none of them: another one takes the place of one that died, so that its last words are heard and starts
    can be counted.
    """

    place: Place
    """Where they compute."""

    def __init__(self, run: Any, count: int, resources: dict[str, float]) -> None:
        """Start them.

        Args:
            run: gets the `Run`; see `RemoteWorker`.
            count: how many.
            resources: options of an actor.
        """
        actor: Any = ray.remote(RemoteWorker)
        self._actor = actor.options(**resources, max_restarts=0, max_task_retries=0)
        self.run, self.count = run, count
        self.ready: list[Any] = []  # actors that are there
        self.starting: dict[Any, _Start] = {}  # by what says that they are
        self._why = ""  # the last one died
        self._none_since, self._warn_after = time.monotonic(), PATIENCE_SECONDS
        for _ in range(count):
            self._start()

    def close(self) -> None:
        """End them at once."""
        for worker in [*self.ready, *(start.worker for start in self.starting.values())]:
            ray.kill(worker)

    def _start(self, failures: int = 0) -> None:
        worker = self._actor.remote()
        self.starting[worker.begin.remote(self.run)] = _Start(worker, failures)

    def wait_for_one(self) -> None:
        """Until one is there. Raises ClipguardError where none comes."""
        while not self.ready:
            for reference in ray.wait(list(self.starting), timeout=1.0)[0]:
                self.arrived(reference)
            self.check_patience()

    def arrived(self, reference: Any) -> Any:
        """The worker that is there, and gets work from now on; None if it died as it started.

        Raises:
            ClipguardError: if none is left.
        """
        worker, failures = self.starting.pop(reference)
        try:
            self.place = get(reference)
        except LOST as error:
            self._bury(worker, error)
            if failures == 0:
                log.warning("A worker died as it started: %s.", self._why)
            if failures + 1 < FAILED_STARTS:
                self._start(failures + 1)
            elif not self.ready and not self.starting:
                raise ClipguardError(
                    f"Workers died {FAILED_STARTS} times each as they started: {self._why}. What is stored is kept; "
                    "use fewer `workers`, or nodes with more memory."
                ) from error
            return None
        self.ready.append(worker)
        return worker

    def lost(self, worker: Any, error: Exception) -> str:
        """A worker that was there died, and another one starts; returns why."""
        self.ready.remove(worker)
        self._bury(worker, error)
        if not self.ready:
            self._none_since, self._warn_after = time.monotonic(), PATIENCE_SECONDS
        self._start()
        return self._why

    def _bury(self, worker: Any, error: Exception) -> None:
        self._why = reason(error)
        ray.kill(worker)  # it may only be out of reach

    def check_patience(self) -> None:
        """Say so, ever more rarely, while there is no worker. Raises ClipguardError when that lasts too long."""
        if self.ready:
            return
        waited = time.monotonic() - self._none_since
        why = f"the last one died: {self._why}" if self._why else "each starts, or waits for room"
        if waited >= MOST_SECONDS:
            raise ClipguardError(
                f"No worker for {waited / 60:.0f} minutes ({why}; {free_processors()}). What is stored is kept: the "
                "same command goes on from there."
            )
        if waited >= self._warn_after:
            self._warn_after *= 2
            log.warning(
                "No worker for %.0f seconds (%s; %s). After %.0f minutes the run ends.",
                waited,
                why,
                free_processors(),
                MOST_SECONDS / 60,
            )


def free_processors() -> str:
    """How many processors of the cluster nobody uses."""
    free, whole = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
    return f"{free.get('CPU', 0):.0f} of {whole.get('CPU', 0):.0f} processors of the cluster are free"


def reason(error: Exception) -> str:
    """Why a worker died, in the words of Ray: their first sentence that says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "creation task" in lines[0]:  # a traceback follows
        return lines[-1][:200]
    line = next((line for line in lines[1:] if line.startswith("The actor")), lines[0])
    return line.split(". ")[0].split(" Worker exit")[0].rstrip(".")[:200]


def get(reference: Any) -> Any:
    """The answer of a worker.

    Raises:
        ClipguardError: as the worker raised it; other errors in a line, their traceback goes into a file.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ClipguardError):
            raise error.cause from None
        number, path = tempfile.mkstemp(prefix="clipguard-worker-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(str(error))
        raise ClipguardError(f"A worker failed: {first_line(error.cause)}. Its traceback is in {path}.") from error
