"""Decoders: processes that decode and resize images ahead of time, while the model is busy with others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from clipguard.core.environment.device import processors
from clipguard.core.errors import ClipguardError

MOST_DECODERS = 8  # that are started without being asked for
FEW_IMAGES = 1000  # for fewer, starting processes takes longer than they save
CONTEXT = "fork" if sys.platform == "linux" else None  # what is in memory is shared; elsewhere PyTorch's own choice
HELD = (signal.SIGINT, signal.SIGTERM)
Item = TypeVar("Item")
Result = TypeVar("Result")


def choose_decoders(asked: int | None, images: int) -> int:
    """How many processes decode so many images.

    Args:
        asked: what the user wants, never more than images; None: none for few images, else one a
            processor but one, and at most `MOST_DECODERS`.
            None are started of themselves where that runs the user's script again (no fork), or is not allowed.
        images: to decode.
    """
    if asked is not None:
        return min(asked, images)
    if CONTEXT != "fork" or multiprocessing.current_process().daemon:
        return 0
    return 0 if images < FEW_IMAGES else min(MOST_DECODERS, processors() - 1)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], decoders: int, *, pin: bool = False
) -> Iterator[Result]:
    """`work` of every item, in the order of the items. The processes end with the iterator.

    Args:
        work: is pickled where processes are not forked, and so is what it returns.
        items: each is taken when a process is about to work on it, two a process ahead.
        decoders: processes; 0: the work is done here, when its result is asked for.
        pin: whether to put results into memory from which GPUs copy by themselves, by their method `pin_memory`.

    Raises:
        ClipguardError: what `work` raised, as it was.
        RuntimeError: for a process that died; see `explain_lost_decoders`.
    """
    if not decoders:
        yield from map(work, items)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more processes than processors: they were asked for
        loader: DataLoader[Result | ClipguardError] = DataLoader(
            _Answers(work),
            sampler=items,
            batch_size=None,
            num_workers=decoders,
            collate_fn=_as_it_is,
            pin_memory=pin,
            worker_init_fn=prepare_worker,
            generator=torch.Generator(),  # it draws a seed, and a randomised model's numbers are the default one's
            multiprocessing_context=CONTEXT,
        )
        with signals_held():
            answers = iter(loader)
    for answer in answers:
        if isinstance(answer, ClipguardError):
            raise answer
        yield answer


@dataclass
class _Answers(Dataset["Result | ClipguardError"], Generic[Item, Result]):
    """What work comes to, by item. An error is an answer, too: a `DataLoader` would put a traceback into its text."""

    work: Callable[[Item], Result]

    def __getitem__(self, item: Item) -> Result | ClipguardError:
        try:
            return self.work(item)
        except ClipguardError as error:
            return error


def _as_it_is(answer: Result) -> Result:
    return answer


@contextmanager
def signals_held() -> Iterator[None]:
    """While processes start, what Ctrl-C raises would be lost in a hook of the fork; it is raised afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(worker: int) -> None:  # noqa: ARG001
    """For a process that starts: what Ctrl-C means is the main one's business, and it ends with that at the latest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=[parent and parent.pid], daemon=True).start()


def _end_with(parent: int | None) -> None:
    """PyTorch's own watch does not see to it where the process waits to hand over a result."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def explain_lost_decoders() -> Iterator[None]:
    """A context in which the death of a decoder is told in one line, wherever PyTorch notices it.

    Raises:
        ClipguardError: for a decoder that was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ClipguardError(
            "A process that decodes images was killed, perhaps for want of memory. Start the same command again, with "
            "fewer `decoders` (0: none)."
        ) from error
