"""The library names settings as Python does, and the command line as flags."""

from __future__ import annotations

import logging

import pytest

from clipguard.cli import app
from clipguard.cli.console.flags import InFlags, in_flags


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("`batch_size` must be at least 1, not 0.", "--batch-size must be at least 1, not 0."),
        ("Use `decode=plain` or `classes`.", "Use --decode plain or --classes."),
        (
            "`datasets` is missing; `clipguard list datasets` names them.",
            "--dataset is missing; `clipguard list datasets` names them.",
        ),
        ("The file has no key `stages`.", "The file has no key `stages`."),
    ],
)
def test_settings_become_flags_and_nothing_else_changes(message: str, typed: str) -> None:
    assert in_flags(message, app) == typed
    record = logging.LogRecord("clipguard", logging.WARNING, "", 0, message.replace("%", "%%"), (), None)
    assert InFlags(app, "%(message)s").format(record) == typed
    assert record.getMessage() == message  # for other handlers
