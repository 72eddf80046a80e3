"""Call into open_clip without its log lines and warnings reaching the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Python warnings and all log records below ERROR for the duration.

    open_clip calls `logging.info(...)` on the root logger, which also installs a stderr handler there when there is
    none; the temporary NullHandler keeps the application's own logging set-up as it was.
    """
    root, placeholder = logging.getLogger(), logging.NullHandler()
    disabled_before = logging.root.manager.disable
    root.addHandler(placeholder)
    logging.disable(max(logging.WARNING, disabled_before))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_before)
        root.removeHandler(placeholder)


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an exception's text, at most `limit` characters; its type where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
