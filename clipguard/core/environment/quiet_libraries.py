"""Silence for calls into open_clip and its like, whose log lines and warnings are none of the user's business."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
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
