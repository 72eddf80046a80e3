"""Lines that hold more than a class name: a header first, or an index or an id before or after every name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from clipguard.core.errors import DatasetError
from clipguard.data.classes.columns import HEADS, ID, incomplete_index, index_start, is_header, plain_head
from clipguard.data.classes.pasted_lines import Lines

SURE = re.compile(r"\s*(?:[-=]>|[,;:|=\t\u2192])\s*")  # between a column and the next
LISTED = re.compile(r"[.)]\s*(?=\D)|\s+-\s+")  # of numbered lists
PERHAPS = re.compile(r"\s+")  # also what may stand in a name
BRACKETED = re.compile(r"(?:(?:class|label|cls|category|id)[\s_]*|[\[(])(\d+)[\])]?\s*[:,.=-]?\s+(\D.*)", re.IGNORECASE)
ALONE = ("class_name", "class_names", "classname", "classnames", "label_name", "category_name")  # a header, no class
Matches = Sequence[re.Match[str] | None]


@dataclass(frozen=True)
class LineColumns:
    """The names of C lines, and what stood beside all of them."""

    names: list[str]
    numbers: list[int]  # of the lines in the file
    headed: bool  # a header was left out
    ids: list[str] | None = None  # of WordNet or Open Images
    index: list[int] | None = None  # 0 to C-1 in any order, or 1 to C


def split_columns(lines: Lines, path: Path) -> LineColumns:
    """Take header, index and ids off the names, each only where every line has it.

    Raises:
        DatasetError: with the line, where most lines have an id or index and others do not, or the index has gaps.
    """
    names, numbers, headed = _drop_header(_unbracket(lines.texts), lines.numbers)
    ids: list[str] | None = None
    index: list[int] | None = None
    for _ in range(3):  # an index, ids and an index again
        with_ids = _split_ids(names, numbers, path)
        if with_ids is not None and ids is None:
            ids, names = with_ids
            continue
        with_index = _split_index(names, numbers, path)
        if with_index is None:
            break
        first_index, names = with_index
        index = index or first_index
    return LineColumns(names, numbers, headed, ids, index)


def _unbracket(names: list[str]) -> list[str]:
    """`[0] bread`, `(0) bread` and `class 0: bread` as `0: bread`, where all lines are so."""
    matches = [BRACKETED.fullmatch(name) for name in names]
    return [f"{m[1]}: {m[2]}" for m in matches if m] if all(matches) else list(names)


def _drop_header(names: list[str], numbers: list[int]) -> tuple[list[str], list[int], bool]:
    """Without a first line such as `index,name`, or `class_name`; another word alone may be a class."""
    if len(names) < 3:
        return names, numbers, False
    headed = _has_columns_header(names)
    if headed:
        names, numbers = names[1:], numbers[1:]
    if len(names) > 2 and names[0].strip().lower().replace(" ", "_") in ALONE:
        return names[1:], numbers[1:], True
    return names, numbers, headed


def _has_columns_header(names: list[str]) -> bool:
    cells = [SURE.split(name, maxsplit=1) for name in names]
    if not all(len(pair) == 2 for pair in cells) or not is_header(cells):
        return False
    words = {plain_head(cell) for cell in SURE.split(names[0])} <= HEADS
    return words or any(index_start(column[1:]) is not None for column in zip(*cells, strict=True))


def _split_ids(names: list[str], numbers: list[int], path: Path) -> tuple[list[str], list[str]] | None:
    """Ids and names, where every line has an id before or after its name. Raises DatasetError where only some do."""
    before = rf"({ID.pattern})['\"]?(?:\s*[,;:|=]\s*|\s+)(.+)"
    after = rf"(.+?)(?:\s*[,;:|=]\s*|\s+)['\"]?({ID.pattern})['\"]?"
    for pattern, place in ((rf"['\"]?{before}", 1), (after, 2)):
        matches = [re.fullmatch(pattern, name) for name in names]
        if all(matches):
            return [m[place] for m in matches if m], [m[3 - place] for m in matches if m]
        if any(matches):
            odd = matches.index(None)
            raise DatasetError(f"{path}: line {numbers[odd]} has no id, and others have: {names[odd]!r}; give all one")
    return None


def _split_index(names: list[str], numbers: list[int], path: Path) -> tuple[list[int], list[str]] | None:
    """Index and names, where every line has a number, and together they count the classes.

    Raises DatasetError where a sign sets numbers off before the names, and one is missing.
    """
    for separator, first in product((SURE, LISTED, PERHAPS), (True, False)):
        sure = separator is SURE and first
        before, after = rf"['\"]?(\d+)['\"]?(?:{separator.pattern})(.+)", rf"(.+?)(?:{separator.pattern})(\d+)"
        matches = [re.fullmatch(before if first else after, name) for name in names]
        if not all(matches):
            if sure:
                _check_most(matches, names, numbers, path)
            continue
        cells = [m[1 if first else 2] for m in matches if m]
        rest = [m[2 if first else 1] for m in matches if m]
        start = index_start(cells)
        if all(re.match(r"\d{3}(\s|$)|\d+$", name) for name in rest):  # 1,000 dollars; 10:30
            continue
        if start is not None and (separator is not PERHAPS or _countable(cells, rest, start, first)):
            return [int(cell) for cell in cells], rest
        if start is None and sure and not any(name[0].isdigit() for name in rest):
            raise incomplete_index(cells, numbers, path)
    return None


def _check_most(matches: Matches, names: list[str], numbers: list[int], path: Path) -> None:
    """Raise DatasetError if most lines have different numbers before a name that no digit begins (`1,000`)."""
    cells = [m[1] for m in matches if m and not m[2][0].isdigit()]
    if len(cells) > len(matches) / 2 and len(cells) >= 2 and len(set(cells)) == len(cells):
        odd = list(matches).index(None)
        raise DatasetError(
            f"{path}: line {numbers[odd]} has no number before the name, and most have: {names[odd]!r}; "
            "number all, or none"
        )


def _countable(cells: Sequence[str], rest: Sequence[str], start: int, first: bool) -> bool:
    """Whether numbers set off by no more than a space are an index, and not counts: `1 star`, `2 stars`, `Apollo 1`."""
    if len({name.rstrip("s") for name in rest}) < len(rest) or (len(rest) == 2 and start == 1):
        return False
    return first or (
        len(rest) > (2 if start == 0 else 4) and [int(cell) for cell in cells] == list(range(start, start + len(cells)))
    )
