"""How processes that train together find each other, and what becomes of them when one is lost.

What a launcher says of them (`launch.py`) may be wrong, so what is waited for is said, and waiting ends.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout

from clipguard.core.errors import FinetuneError, ToldElsewhereError, first_line
from clipguard.finetuning.processes.launch import (
    Launch,
    cure,
    is_supervised,
    only,
    read_launch,
    tell_what_is_not_read,
    variables_set,
)
from clipguard.finetuning.processes.team import ALONE, Team

log = logging.getLogger("clipguard")
RENDEZVOUS_TIMEOUT = 60.0  # seconds
PATIENCE = 3.0  # seconds that launched processes may be apart without a word


@contextmanager
def joined(device: str, timeout: float) -> Iterator[Team]:
    """Meet the processes that were launched with this one; on its own otherwise.

    Until the end accelerate sees of the environment only that, and helpers log errors alone.

    Args:
        device: as of torch.
        timeout: seconds in which all must have come.

    Raises:
        FinetuneError: for variables that fit no launch, when not all have come in time, and when one is lost later on.
    """
    launch = read_launch()
    if launch.size > 1 and device == "mps":
        raise FinetuneError(f"{launch.size} processes cannot share mps: train with one, or `device=cpu`.")
    tell_what_is_not_read(launch)
    if launch.size == 1:
        with only({}):
            yield ALONE
        return
    launcher, store = meet(launch, timeout)
    level = log.level
    if device == "cuda":
        torch.cuda.set_device(launch.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size)
    try:
        if launch.rank > 0:
            log.setLevel(logging.ERROR)
        with only(launch.variables()), _lost_processes_told(launch):
            yield Team(launch.rank, launch.size, launcher)
    finally:
        log.setLevel(level)
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _lost_processes_told(launch: Launch) -> Iterator[None]:
    """Say that another process has ended, where nobody else does: a launcher that watches them, and what has ended.

    Raises:
        FinetuneError: in the main process, when another's end is noticed; ToldElsewhereError in the rest.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        log.debug("A process of the run was lost", exc_info=True)
        if launch.rank > 0 or is_supervised():
            raise ToldElsewhereError(str(error)) from error
        raise FinetuneError(
            f"Another process of this run has ended ({first_line(error, 80)}): see what it said, and go on with"
            " `resume`."
        ) from error


def meet(launch: Launch, timeout: float) -> tuple[Store | None, Store]:
    """The store through which all processes talk, once all have come; a wait of some seconds is told.

    Returns:
        What outlives these processes, if they are watched and started again, and what is for them alone.

    Raises:
        FinetuneError: if they have not all come after `timeout` seconds, or the port is another program's.
    """
    started, said = time.monotonic(), False
    store: TCPStore | None = None
    attempt = f"clipguard/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    here, why = 1, ""
    while here < launch.size or store is None:
        waited = time.monotonic() - started
        if waited > timeout:
            raise FinetuneError(
                f"After {timeout:g} s (`rendezvous_timeout`) {_absent(launch, store, here)}{why}: {cure()}"
            )
        if waited > min(PATIENCE, timeout / 2) and not said:
            said = True
            log.warning("Waiting up to %g s, because %s: %s", timeout, _absent(launch, store, here), cure())
        if store is None:
            store, why = _connect(launch)
            if store is not None:
                store.add(f"{attempt}/arrived", 1)
        else:
            here = store.add(f"{attempt}/arrived", 0)
        if here < launch.size:
            time.sleep(0.1)
    store.set_timeout(default_pg_timeout)
    kept = PrefixStore("clipguard/launch", store) if is_supervised() else None
    return kept, PrefixStore(f"{attempt}/group", store)


def _connect(launch: Launch) -> tuple[TCPStore | None, str]:
    """The store of the launcher, else the one that the first process opens; or why it is not there yet."""
    launcher_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serve = launch.rank == 0 and not launcher_has_it
    soon = timedelta(seconds=2)
    try:
        if serve:
            store = TCPStore("127.0.0.1", launch.port, None, True, soon, wait_for_workers=False)
        else:  # torch's own attempts cannot be interrupted
            socket.create_connection((launch.address, launch.port), timeout=1).close()
            with _no_stack_traces():
                store = TCPStore(launch.address, launch.port, None, False, soon, wait_for_workers=False)
    except OSError as error:
        return None, f" ({error.strerror or error})"
    except RuntimeError as error:
        if serve:
            raise FinetuneError(
                f"MASTER_PORT={launch.port} cannot be opened ({first_line(error, 80)}): name a free one, or {cure()}"
            ) from error
        return None, f" ({first_line(error, 80)})"
    return store, ""


@contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Without what torch's C++ says on stderr beside its exception, where another program has the port."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _absent(launch: Launch, store: Store | None, here: int) -> str:
    variables = ", ".join(variables_set())
    if store is None:
        return f"process 0 of {launch.size} is not there ({variables})"
    n = launch.size - here
    return f"{n} other process{'es are' if n > 1 else ' is'} not there ({variables})"
