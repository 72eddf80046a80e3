"""Class names from a file, or from between commas: which column is an index, which an id, and which the names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipguard.core.errors import DatasetError
from clipguard.core.notices import notice
from clipguard.data.classes.columns import (
    HEADS,
    ID,
    INDEX_HEADS,
    NAME_HEADS,
    Table,
    incomplete,
    is_header,
    kind_of,
    plain_head,
    read_table,
    start_of,
    table_of,
)
from clipguard.data.classes.labels import GivenNames
from clipguard.data.classes.names import WNID
from clipguard.data.classes.pasted_text import (
    Lines,
    clean_lines,
    existing_file,
    is_quoted,
    parse_literal,
    read_text,
    strings,
    unquote,
    unquote_lines,
)

SURE = re.compile(r"\s*(?:[-=]>|[,;:|=\t\u2192])\s*")  # between a column and the next
LISTED = re.compile(r"[.)]\s*(?=\D)|\s+-\s+")  # of numbered lists
PERHAPS = re.compile(r"\s+")  # also what may stand in a name
BETWEEN_COMMAS = re.compile(r"""\s*("(?:[^"]|"")*"|'(?:[^']|'')*'|[^,]*?)\s*(,|$)""")
WRAPPERS = ("names", "classes", "class_names", "classnames", "categories", "labels", "id2label")
BRACKETED = re.compile(r"(?:(?:class|label|cls|category|id)[\s_]*|[\[(])(\d+)[\])]?\s*[:,.=-]?\s+(\D.*)", re.IGNORECASE)
PROMPT = re.compile(r"\b(photo|picture|image|drawing|painting|sketch|rendering)s? of\b", re.IGNORECASE)
ALONE = ("class_name", "class_names", "classname", "classnames", "label_name", "category_name")  # a header, no class
FILES = (".txt", ".json", ".csv", ".tsv", ".yaml", ".yml", ".names")


def read_class_list(path: Path, origin: str | None = None) -> GivenNames:
    """Class names in label order from a file: one a line or a JSON list, or another form that can mean one thing only.

    Also read, and said in a notice: an index (0 to C-1 in any order, or 1 to C) or an id (WordNet, Open Images) beside
    each name; quotes, commas at the end, comments; Python lists and dicts; YAML; tables with or without a header.
    A column is an index or an id only if every line has it, so names with numbers or commas stay as they are.
    Raises DatasetError, with the line, for anything else.
    """
    origin = origin or str(path)
    text = read_text(path)
    value = parse_literal(text, path)
    if value is not None:
        return _from_value(value, path, origin, plain=_is_json(text, path))
    if path.suffix.lower() in (".csv", ".tsv"):
        table = read_table(text, path)
        if table is not None:
            return _from_table(table, path, origin)
    lines = clean_lines(text, path)
    if len(lines.texts) == 1 and "," in lines.texts[0]:
        return _said(GivenNames(split_names(lines.texts[0]), origin), (), "one line")
    return _from_lines(lines, path, origin)


def parse_classes(text: str) -> GivenNames:
    """`--classes`: a file of names (`read_class_list`), or names between commas, in quotes where they have commas.

    Raises DatasetError if it is neither.
    """
    path = existing_file(text)
    if path is not None:
        return read_class_list(path, text)
    value = parse_literal(text, Path("--classes")) if text.lstrip()[:1] in ("[", "{") else None
    if value is not None:
        return _from_value(value, Path("--classes"), "--classes", plain=True)
    if Path(text).suffix.lower() in FILES or ("/" in text and "," not in text):
        return read_class_list(Path(text).expanduser(), text)  # which tells why it cannot be read
    if "," not in text:
        raise DatasetError(f"--classes {text!r} is neither a file nor several names; write cat,dog,bird.")
    return GivenNames(split_names(text), "--classes")


def split_names(text: str) -> list[str]:
    """`cat, "CD player, portable", 'dog'` -> three names. Raises DatasetError for an empty one."""
    text, names, at = text.strip().removesuffix(","), list[str](), 0
    while True:
        match = BETWEEN_COMMAS.match(text, at)
        assert match is not None  # it matches anything
        names.append(unquote(match[1]) if is_quoted(match[1]) else match[1])
        at = match.end()
        if not match[2]:
            break
    if "" in names:
        raise DatasetError(f"--classes: name {names.index('') + 1} in {text!r} is empty; write cat,dog,bird")
    return names


def _is_json(text: str, path: Path) -> bool:
    return path.suffix.lower() == ".json" or text.lstrip().startswith("[")


def _from_value(value: Any, path: Path, origin: str, *, plain: bool) -> GivenNames:
    """Names of a JSON, YAML or Python value; `plain` lists of strings need no notice."""

    def refuse(reason: str) -> DatasetError:
        return DatasetError(
            f"{path} must be a JSON list of strings, one for each class in label order, or one name a line ({reason})"
        )

    if isinstance(value, dict):
        wrapped = [key for key in value if str(key).lower() in WRAPPERS and isinstance(value[key], (dict, list))]
        if len(wrapped) == 1 and not all(str(key).isdecimal() for key in value):
            return _from_value(value[wrapped[0]], path, origin, plain=False)
    table = table_of(value)
    if table is None:
        names = GivenNames(strings(value, refuse), origin)
        return names if plain else _said(names, (), "a list")
    if len({len(row) for row in table.rows}) != 1:
        raise refuse("its entries are not alike")
    return _from_table(table, path, origin)


def _from_table(table: Table, path: Path, origin: str) -> GivenNames:
    """Names of a table whose one column of words is the names. Raises DatasetError if there is none, or several."""
    columns = list(zip(*table.rows, strict=True))
    heads = table.heads or ("",) * len(columns)
    kinds = [kind_of(cells) for cells in columns]
    words = [i for i, kind in enumerate(kinds) if kind == "words"]
    if len(words) > 1:  # a header decides
        named = [i for head in NAME_HEADS for i in words if heads[i] == head]
        named = named or [i for i in words if heads[i].endswith("name")]
        words = named[:1] or words
    if len(words) != 1:
        what = "no column of words" if not words else f"{len(words)} columns of words"
        raise DatasetError(f"{path}: {what}, and one is needed (line {table.numbers[0]}); give one class name a line")
    names = GivenNames(list(columns[words[0]]), origin)
    done: list[str] = []
    ids = next((cells for cells, kind in zip(columns, kinds, strict=True) if kind == "ids"), None)
    if ids is not None:
        names, done = _with_ids(names, ids), [*done, f"their ids ({ids[0]} ...)"]
    numbers = [i for i, kind in enumerate(kinds) if kind == "numbers"]
    numbers.sort(key=lambda i: heads[i] not in INDEX_HEADS)
    complete = [i for i in numbers if start_of(columns[i]) is not None]
    if complete:
        names, said = _in_order(names, [int(cell) for cell in columns[complete[0]]])
        done.append(said)
    elif numbers and (not table.heads or any(heads[i] in INDEX_HEADS for i in numbers)):
        raise incomplete(columns[numbers[0]], table.numbers, path)
    return _said(names, done, f"a table ({', '.join(head or '-' for head in heads)})" if table.heads else "a table")


def _from_lines(lines: Lines, path: Path, origin: str) -> GivenNames:
    """Names one a line, with an index and an id before or after them, or without."""
    names, done, order, ids = _unbracketed(lines.texts), list(lines.done), None, None
    names, numbers, headless = _drop_header(names, lines.numbers)
    if len(names) > 2 and names[0].strip().lower().replace(" ", "_") in ALONE:
        names, numbers, headless = names[1:], numbers[1:], True
    done += ["the header"] if headless else []
    for _ in range(3):
        found_ids = _split_ids(names, numbers, path)
        if found_ids is not None and ids is None:
            ids, names = found_ids
            done.append(f"their ids ({ids[0]} ...)")
            continue
        found = _split_index(names, numbers, path)
        if found is None:
            break
        index, names = found
        order = order or index
    given = GivenNames(unquote_lines(Lines(names, numbers), path).texts, origin)
    _check_alone(given.names, path)
    if ids is not None:
        given = _with_ids(given, ids)
    if order is not None:
        given, said = _in_order(given, order)
        done.append(said)
    return _said(given, done)


def _unbracketed(names: list[str]) -> list[str]:
    """`[0] bread`, `(0) bread` and `class 0: bread` as `0: bread`, where all lines are so."""
    found = [BRACKETED.fullmatch(name) for name in names]
    return [f"{m[1]}: {m[2]}" for m in found if m] if all(found) else list(names)


def _check_alone(names: list[str], path: Path) -> None:
    """Raise DatasetError for names that are wrapped in what is no part of a name."""
    start = os.path.commonprefix(names)  # noqa: RUF071  # of texts, not of paths
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]  # noqa: RUF071
    for place, shown in (("begin", start), ("end", end)):
        if len(names) > 2 and len(shown) > 2 and re.search(r"[/\\<>:{}|=@$\[\]]|__", shown):
            raise DatasetError(f"{path}: all names {place} with {shown!r}; give the names without it")
    for number, name in enumerate(names, start=1):
        if re.search(r"\\[ux][0-9a-fA-F]{2}|<[^<>]+>", name):
            raise DatasetError(f"{path}: name {number} is {name!r}, with markup or escapes; write it in plain text")
    if len(names) > 2 and all(PROMPT.search(name) for name in names):
        notice("guessed", f"{path}: the names look like prompts ({names[0]!r}), and templates put words around them")


def _drop_header(names: list[str], numbers: list[int]) -> tuple[list[str], list[int], bool]:
    """Without a first line such as `index,name`; one word alone may be a class."""
    cells = [SURE.split(name, maxsplit=1) for name in names]
    if len(names) > 2 and all(len(pair) == 2 for pair in cells) and is_header(cells):
        words = {plain_head(cell) for cell in SURE.split(names[0])} <= HEADS
        if words or any(start_of(column[1:]) is not None for column in zip(*cells, strict=True)):
            return names[1:], numbers[1:], True
    return names, numbers, False


def _split_ids(names: list[str], numbers: list[int], path: Path) -> tuple[list[str], list[str]] | None:
    """Ids and names, where every line has an id before or after its name. Raises DatasetError where only some do."""
    before = rf"({ID.pattern})['\"]?(?:\s*[,;:|=]\s*|\s+)(.+)"
    after = rf"(.+?)(?:\s*[,;:|=]\s*|\s+)['\"]?({ID.pattern})['\"]?"
    for pattern, place in ((rf"['\"]?{before}", 1), (after, 2)):
        found = [re.fullmatch(pattern, name) for name in names]
        if all(found):
            return [m[place] for m in found if m], [m[3 - place] for m in found if m]
        if any(found):
            odd = found.index(None)
            raise DatasetError(f"{path}: line {numbers[odd]} has no id, and others have: {names[odd]!r}; give all one")
    return None


def _split_index(names: list[str], numbers: list[int], path: Path) -> tuple[list[int], list[str]] | None:
    """Numbers and names, where every line has a number, and together they count the classes."""
    for separator in (SURE, LISTED, PERHAPS):
        sure = separator is SURE
        for first in (True, False):
            pattern = rf"['\"]?(\d+)['\"]?(?:{separator.pattern})(.+)"
            if not first:
                pattern = rf"(.+?)(?:{separator.pattern})(\d+)"
            found = [re.fullmatch(pattern, name) for name in names]
            if not all(found):
                if sure and first and _nearly(found):
                    odd = found.index(None)
                    raise DatasetError(
                        f"{path}: line {numbers[odd]} has no number before the name, and most have: {names[odd]!r}; "
                        "number all, or none"
                    )
                continue
            cells = [m[1 if first else 2] for m in found if m]
            rest = [m[2 if first else 1] for m in found if m]
            start = start_of(cells)
            if all(re.match(r"\d{3}(\s|$)|\d+$", name) for name in rest):  # 1,000 dollars; 10:30
                continue
            if start is not None and (separator is not PERHAPS or _countable(cells, rest, start, first)):
                return [int(cell) for cell in cells], rest
            if start is None and sure and first and not any(name[0].isdigit() for name in rest):
                raise incomplete(cells, numbers, path)
    return None


def _nearly(found: Sequence[re.Match[str] | None]) -> bool:
    """Whether most lines have different numbers before a name that does not go on with a digit (`1,000`)."""
    cells = [m[1] for m in found if m and not m[2][0].isdigit()]
    return len(cells) > len(found) / 2 and len(cells) >= 2 and len(set(cells)) == len(cells)


def _countable(cells: Sequence[str], rest: Sequence[str], start: int, first: bool) -> bool:
    """Whether numbers set off by no more than a space are an index, and not counts: `1 star`, `2 stars`, `Apollo 1`."""
    if len({name.rstrip("s") for name in rest}) < len(rest) or (len(rest) == 2 and start == 1):
        return False
    return first or (
        len(rest) > (2 if start == 0 else 4) and [int(cell) for cell in cells] == list(range(start, start + len(cells)))
    )


def _in_order(names: GivenNames, index: list[int]) -> tuple[GivenNames, str]:
    """Names, and ids if any, sorted by an index that is complete; and how to say so."""
    order = sorted(range(len(index)), key=index.__getitem__)
    from_one = min(index) == 1
    # Labels that are texts (`1`, `2`, ... of folders) are the file's own numbers, however many of them there are.
    ids = [names.ids[i] for i in order] if names.ids else [str(index[i]) for i in order] if from_one else None
    said = f"their index ({min(index)} to {max(index)}{', so its 1 is label 0' if from_one else ''}"
    said += ", not in order: sorted by it)" if order != list(range(len(index))) else ")"
    return replace(names, names=[names.names[i] for i in order], ids=ids), said


def _with_ids(names: GivenNames, ids: Sequence[str]) -> GivenNames:
    """Names with their ids. Beside WordNet's ids stand all words of a synset: the first is the name."""
    words = names.names
    if all(WNID.fullmatch(one) for one in ids):
        words = [word.partition(",")[0].strip().replace("_", " ") for word in words]
    return replace(names, names=words, ids=list(ids))


def _said(names: GivenNames, done: Sequence[str], form: str = "lines") -> GivenNames:
    """The same names, and a notice of how the file was read, unless it has plain names, one a line."""
    if done or form != "lines":
        first = ", ".join(repr(name) for name in names.names[:3]) + (", ..." if len(names.names) > 3 else "")
        without = f", without {', '.join(done)}" if done else ""
        notice("translated", f"{names.origin}: read as {form} of {len(names.names)} class names{without}: {first}")
    return names
