"""Settings in messages: the library names them as Python does (`batch_size`), the command line as flags."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import typer

LISTS = {
    "models": "--model",
    "datasets": "--dataset",
    "attacks": "--attack",
    "threats": "--threat",
    "metrics": "--metric",
}
SETTING = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`\s]+))?`")


def in_flags(message: str, app: typer.Typer) -> str:
    """A message of the library for someone who typed flags: --batch-size for `batch_size`, --seed 1 for `seed=1`.

    What is between backticks and no setting of any command stays as it is.
    """
    flags = _all_flags(app)

    def spell(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in flags:
            return match.group()
        return flags[name] if value is None else f"{flags[name]} {value}"

    return SETTING.sub(spell, message)


@cache
def _all_flags(app: typer.Typer) -> dict[str, str]:
    """Every option of every command, by its name in Python."""
    commands = _commands(typer.main.get_command(app))
    return LISTS | {name: flag for command in commands for name, flag in _flags(command)}


class InFlags(logging.Formatter):
    """The same for lines of the log. The record itself stays as it is: other handlers want it, too."""

    def __init__(self, app: typer.Typer, line: str) -> None:
        """`line` is the format of a line, as `logging.Formatter` takes it."""
        super().__init__(line)
        self._app = app

    def format(self, record: logging.LogRecord) -> str:
        """A line of the log, spelled in flags."""
        text = super().format(record)
        return in_flags(text, self._app) if "`" in text else text


def _commands(command: Any) -> Iterator[Any]:  # Typer's own click has no public types
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from _commands(child)


def _flags(command: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        for flag in parameter.opts:
            if flag.startswith("--"):
                yield flag.removeprefix("--").replace("-", "_"), flag
