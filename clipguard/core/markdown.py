"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

RULES = {"l": " --- |", "r": " ---: |"}


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], alignment: str) -> list[str]:
    """The lines of a table; `alignment` has a letter for each column: l or r. Cells are taken as they are."""
    rule = "|" + "".join(RULES[letter] for letter in alignment)
    return [_line(headings), rule, *map(_line, rows)]


def escape_markdown(value: object) -> str:
    """Text that stays text in a Markdown table, on one line."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", line).replace("<", "&lt;").replace(">", "&gt;")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
