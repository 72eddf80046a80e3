"""Errors a user can mend. Library code raises them with a message that names the cure; only `cli/` prints or exits.

Messages name a setting as Python does, between backticks (`batch_size`, or with a value `decode=plain`); the command
line prints the flag instead (`cli/console/flags.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClipguardError(Exception):
    """Base of all errors that are the input's fault: one line, what is wrong and what to do. Exit code 2."""


class ModelError(ClipguardError):
    """A model that cannot be named, found, read or trusted."""


class DatasetError(ClipguardError):
    """A data set that cannot be named, found, read or evaluated."""


class SplitError(DatasetError):
    """A data set that has no split of that name, or several and none that would be meant without a name."""


class CaptionError(DatasetError):
    """A data set without captions, or with several columns that could be them."""


class AttackError(ClipguardError):
    """An attack or threat that does not exist, or that cannot be run on this model."""


class NoGradientError(AttackError):
    """A model that passes no gradient to its input."""


class DefenseError(ClipguardError):
    """A defence that does not exist, or that cannot stand around this model."""


class NonFiniteError(AttackError):
    """NaN or infinite values where numbers are needed."""


class ToldElsewhereError(ClipguardError):
    """An error that another of several processes tells, for all of them."""


class FinetuneError(ClipguardError):
    """A fine-tuning method that does not exist, or a training run that cannot be done or did not succeed."""


class ResultError(ClipguardError):
    """A stored result that cannot be read, or two that cannot be compared."""


class OutputError(ClipguardError):
    """A place that cannot be written, or that holds something that would be lost."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x' or 'y'?"` for the nearest known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def first_line(error: BaseException, limit: int = 200) -> str:
    """The root cause of a library's error on one line of at most `limit` characters; its type if it has no text."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].rstrip(".") if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
