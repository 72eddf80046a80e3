"""What was done to an input beside reading it: skipped, cut, translated, rescaled, guessed. A line each, never silent.

A notice is logged as a warning (the command line shows it on stderr) and kept in the run that is under way, as
`run.notices` of the result files. Whatever changes what is evaluated and is not an error says so by `notice`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypedDict, get_args

Kind = Literal["skipped", "truncated", "translated", "rescaled", "guessed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
log = logging.getLogger("clipguard")


class Notice(TypedDict):
    """One entry of `run.notices`."""

    kind: Kind
    text: str
    """What was done, to what and how often, and what to do where it was not meant."""


_kept: ContextVar[list[Notice] | None] = ContextVar("notices", default=None)


def notice(kind: Kind, text: str) -> None:
    """Say once in a run what was done to an input.

    Args:
        kind: of what was done.
        text: one line that names the input and the number of items. It is stored with results: change none lightly.
    """
    repeat({"kind": kind, "text": text})


def repeat(entry: Notice) -> None:
    """Say here, once in a run, what was noticed, here or in another process."""
    kept = _kept.get()
    if kept is not None:
        if entry in kept:
            return
        kept.append(entry)
    log.warning(entry["text"])


@contextmanager
def noticing() -> Iterator[list[Notice]]:
    """Keep the notices of a run.

    Yields:
        A list that grows while the run goes on. Inside another such context it is the outer one's: what a run is part
        of hears of it too.
    """
    kept = _kept.get()
    if kept is not None:
        yield kept
        return
    fresh: list[Notice] = []
    token = _kept.set(fresh)
    try:
        yield fresh
    finally:
        _kept.reset(token)
