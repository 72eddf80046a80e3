"""Columns beside class names: which holds an index, which ids, and which row is a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipguard.core.errors import DatasetError

ID = re.compile(r"n\d{8}|/m/0[0-9a-z_]+|/g/1[0-9a-z_]+")  # WordNet's, and those of Open Images
INDEX_HEADS = ("index", "idx", "id", "classid", "classindex", "classidx", "labelid", "label", "target", "number")
NAME_HEADS = ("classname", "labelname", "displayname", "name", "names", "words", "category", "class")
HEADS = {*INDEX_HEADS, *NAME_HEADS, "labels", "synset", "wnid", "mid", "code", "description"}


@dataclass(frozen=True)
class Table:
    """Cells (C rows of equal length), the line or entry that each row is from, and the names of columns, if any."""

    rows: list[list[str]]
    numbers: list[int]
    heads: tuple[str, ...] = ()


def table_of_value(value: Any) -> Table | None:
    """A dict, or a list of lists or dicts, as a table; None for a plain list and anything else."""
    heads: tuple[str, ...] = ()
    if isinstance(value, dict) and value:
        rows = [[key, *cell] if isinstance(cell, (list, tuple)) else [key, cell] for key, cell in value.items()]
    elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        heads = tuple(str(key).lower() for key in value[0])
        if any(list(entry) != list(value[0]) for entry in value):
            return None
        rows = [list(entry.values()) for entry in value]
    elif isinstance(value, list) and value and all(isinstance(entry, (list, tuple)) for entry in value):
        rows = [list(entry) for entry in value]
    else:
        return None
    if any(isinstance(cell, bool) or not isinstance(cell, (str, int)) for row in rows for cell in row):
        return None
    return Table([[str(cell).strip() for cell in row] for row in rows], list(range(1, len(rows) + 1)), heads)


def read_table(text: str, path: Path) -> Table | None:
    """A CSV or TSV file with a header or several columns; None where lines are to be read as lines."""
    lines = text.rstrip().splitlines()
    semicolons = all(";" in line for line in lines) and not all("," in line for line in lines)
    tab = path.suffix.lower() == ".tsv"
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(lines, delimiter="\t" if tab else ";" if semicolons else ",", skipinitialspace=True)
    ]
    if not rows or len({len(row) for row in rows}) != 1:
        return None  # names with commas of their own
    numbers = list(range(1, len(rows) + 1))
    if is_header(rows):
        return Table(rows[1:], numbers[1:], tuple(plain_head(cell) for cell in rows[0]))
    return Table(rows, numbers) if len(rows[0]) > 1 else None


def plain_head(cell: str) -> str:
    """The name of a column, without case, spaces and underscores."""
    return re.sub(r"[^a-z]", "", cell.lower())


def is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: by usual words, or above a column of numbers that it is not of."""
    heads, columns = [plain_head(cell) for cell in rows[0]], list(zip(*rows, strict=True))
    if len(rows) < 2 or any(cell.isdecimal() for cell in rows[0]):
        return False
    if len(columns) == 1:
        return heads[0] in HEADS
    return bool(HEADS & set(heads)) or (len(rows) > 2 and any(index_start(cells[1:]) is not None for cells in columns))


def column_kind(cells: Sequence[str]) -> Literal["ids", "numbers", "words"]:
    """What a column holds."""
    if all(ID.fullmatch(cell) for cell in cells):
        return "ids"
    return "numbers" if all(cell.isdecimal() for cell in cells) else "words"


def index_start(cells: Sequence[str]) -> int | None:
    """0 or 1, where the cells are 0 to C-1 or 1 to C in some order; else None."""
    if not all(cell.isdecimal() for cell in cells):
        return None
    values = sorted(int(cell) for cell in cells)
    return values[0] if values[0] in (0, 1) and values == list(range(values[0], values[0] + len(values))) else None


def incomplete_index(cells: Sequence[str], numbers: Sequence[int], path: Path) -> DatasetError:
    """The error for an index with a gap, a repetition or another beginning, at the first line where it goes wrong."""
    seen: set[int] = set()
    for cell, number in zip(cells, numbers, strict=True):
        if int(cell) in seen:
            return DatasetError(f"{path}: line {number} has the index {cell} for the second time; give each class one")
        seen.add(int(cell))
    missing = next(i for i in range(len(cells) + 1) if i not in seen)
    cell, odd = next((c, n) for c, n in zip(cells, numbers, strict=True) if int(c) >= len(cells) or missing == 0)
    return DatasetError(
        f"{path}: line {odd} has the number {cell}, but {len(cells)} classes are numbered 0 to {len(cells) - 1}, and "
        f"{missing} is missing; add it, or give names alone, one a line (a JSON list is taken as it is)"
    )
