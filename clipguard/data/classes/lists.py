"""Lists of class names: from a file or from between commas, as lines, a table or a value, in label order."""

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
    INDEX_HEADS,
    NAME_HEADS,
    Table,
    column_kind,
    incomplete_index,
    index_start,
    read_table,
    table_of_value,
)
from clipguard.data.classes.ids import WNID
from clipguard.data.classes.labels import NameList
from clipguard.data.classes.line_columns import split_columns
from clipguard.data.classes.pasted_lines import Lines, clean_lines, is_quoted, unquote, unquote_lines
from clipguard.data.classes.pasted_value import parse_literal, strings
from clipguard.data.text_files import existing_file, read_text

TYPED = "--classes"  # where names come from that were typed: stored in notices, so it is spelled as it always was
BETWEEN_COMMAS = re.compile(r"""\s*("(?:[^"]|"")*"|'(?:[^']|'')*'|[^,]*?)\s*(,|$)""")
WRAPPERS = ("names", "classes", "class_names", "classnames", "categories", "labels", "id2label")
PROMPT = re.compile(r"\b(photo|picture|image|drawing|painting|sketch|rendering)s? of\b", re.IGNORECASE)
FILES = (".txt", ".json", ".csv", ".tsv", ".yaml", ".yml", ".names")


def read_class_list(path: Path, origin: str | None = None) -> NameList:
    """Class names in label order from a file: one a line or a JSON list, or another form that can mean one thing only.

    Also read, and said in a notice: an index (0 to C-1 in any order, or 1 to C) or an id (WordNet, Open Images) beside
    each name; quotes, commas at the end, comments; Python lists and dicts; YAML; tables with or without a header.
    A column is an index or an id only if every line has it, so names with numbers or commas stay as they are.

    Raises:
        DatasetError: with the line, for anything else.
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
        return _said(NameList(split_names(lines.texts[0]), origin), (), "one line")
    return _from_lines(lines, path, origin)


def parse_classes(text: str) -> NameList:
    """`classes` as typed: a file of names (`read_class_list`), or names between commas, in quotes if they have commas.

    Raises:
        DatasetError: if it is neither.
    """
    path = existing_file(text)
    if path is not None:
        return read_class_list(path, text)
    value = parse_literal(text, Path("`classes`")) if text.lstrip()[:1] in ("[", "{") else None
    if value is not None:
        return _from_value(value, Path("`classes`"), TYPED, plain=True)
    if Path(text).suffix.lower() in FILES or ("/" in text and "," not in text):
        return read_class_list(Path(text).expanduser(), text)  # which tells why it cannot be read
    if "," not in text:
        raise DatasetError(f"`classes` {text!r} is neither a file nor several names; write cat,dog,bird.")
    return NameList(split_names(text), TYPED)


def split_names(text: str) -> list[str]:
    """`cat, "CD player, portable", 'dog'` -> three names.

    Raises:
        DatasetError: for an empty one.
    """
    text, names, at = text.strip().removesuffix(","), list[str](), 0
    while True:
        match = BETWEEN_COMMAS.match(text, at)
        assert match is not None  # it matches anything
        names.append(unquote(match[1]) if is_quoted(match[1]) else match[1])
        at = match.end()
        if not match[2]:
            break
    if "" in names:
        raise DatasetError(f"`classes`: name {names.index('') + 1} in {text!r} is empty; write cat,dog,bird")
    return names


def _is_json(text: str, path: Path) -> bool:
    return path.suffix.lower() == ".json" or text.lstrip().startswith("[")


def _from_value(value: Any, path: Path, origin: str, *, plain: bool) -> NameList:
    """Names of a JSON, YAML or Python value; `plain` lists of strings need no notice."""

    def refuse(reason: str) -> DatasetError:
        return DatasetError(
            f"{path} must be a JSON list of strings, one for each class in label order, or one name a line ({reason})"
        )

    if isinstance(value, dict):
        wrapped = [key for key in value if str(key).lower() in WRAPPERS and isinstance(value[key], (dict, list))]
        if len(wrapped) == 1 and not all(str(key).isdecimal() for key in value):
            return _from_value(value[wrapped[0]], path, origin, plain=False)
    table = table_of_value(value)
    if table is None:
        names = NameList(strings(value, refuse), origin)
        return names if plain else _said(names, (), "a list")
    if len({len(row) for row in table.rows}) != 1:
        raise refuse("its entries are not alike")
    return _from_table(table, path, origin)


def _from_table(table: Table, path: Path, origin: str) -> NameList:
    """Names of a table whose one column of words is the names. Raises DatasetError if there is none, or several."""
    columns = list(zip(*table.rows, strict=True))
    heads = table.heads or ("",) * len(columns)
    kinds = [column_kind(cells) for cells in columns]
    words = [i for i, kind in enumerate(kinds) if kind == "words"]
    if len(words) > 1:  # a header decides
        named = [i for head in NAME_HEADS for i in words if heads[i] == head]
        named = named or [i for i in words if heads[i].endswith("name")]
        words = named[:1] or words
    if len(words) != 1:
        what = "no column of words" if not words else f"{len(words)} columns of words"
        raise DatasetError(f"{path}: {what}, and one is needed (line {table.numbers[0]}); give one class name a line")
    names = NameList(list(columns[words[0]]), origin)
    done: list[str] = []
    ids = next((cells for cells, kind in zip(columns, kinds, strict=True) if kind == "ids"), None)
    if ids is not None:
        names, said = _with_ids(names, ids)
        done.append(said)
    numbers = [i for i, kind in enumerate(kinds) if kind == "numbers"]
    numbers.sort(key=lambda i: heads[i] not in INDEX_HEADS)
    complete = [i for i in numbers if index_start(columns[i]) is not None]
    if complete:
        names, said = _in_order(names, [int(cell) for cell in columns[complete[0]]])
        done.append(said)
    elif numbers and (not table.heads or any(heads[i] in INDEX_HEADS for i in numbers)):
        raise incomplete_index(columns[numbers[0]], table.numbers, path)
    return _said(names, done, f"a table ({', '.join(head or '-' for head in heads)})" if table.heads else "a table")


def _from_lines(lines: Lines, path: Path, origin: str) -> NameList:
    """Names one a line, with an index and an id before or after them, or without."""
    columns = split_columns(lines, path)
    names = NameList(unquote_lines(Lines(columns.names, columns.numbers), path).texts, origin)
    _check_alone(names.names, path)
    done = [*lines.done, *(["the header"] if columns.headed else [])]
    if columns.ids is not None:
        names, said = _with_ids(names, columns.ids)
        done.append(said)
    if columns.index is not None:
        names, said = _in_order(names, columns.index)
        done.append(said)
    return _said(names, done)


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


def _in_order(names: NameList, index: list[int]) -> tuple[NameList, str]:
    """Names, and ids if any, sorted by an index that is complete; and how to say so."""
    order = sorted(range(len(index)), key=index.__getitem__)
    from_one = min(index) == 1
    # Labels that are texts (`1`, `2`, ... of folders) are the file's own numbers, however many of them there are.
    ids = [names.ids[i] for i in order] if names.ids else [str(index[i]) for i in order] if from_one else None
    said = f"their index ({min(index)} to {max(index)}{', so its 1 is label 0' if from_one else ''}"
    said += ", not in order: sorted by it)" if order != list(range(len(index))) else ")"
    return replace(names, names=[names.names[i] for i in order], ids=ids), said


def _with_ids(names: NameList, ids: Sequence[str]) -> tuple[NameList, str]:
    """Names with their ids, and how to say so. Of a synset's words beside WordNet's ids the first is the name."""
    words = names.names
    if all(WNID.fullmatch(one) for one in ids):
        words = [word.partition(",")[0].strip().replace("_", " ") for word in words]
    return replace(names, names=words, ids=list(ids)), f"their ids ({ids[0]} ...)"


def _said(names: NameList, done: Sequence[str], form: str = "lines") -> NameList:
    """The same names, and a notice of how the file was read, unless it has plain names, one a line."""
    if done or form != "lines":
        first = ", ".join(repr(name) for name in names.names[:3]) + (", ..." if len(names.names) > 3 else "")
        without = f", without {', '.join(done)}" if done else ""
        notice("translated", f"{names.origin}: read as {form} of {len(names.names)} class names{without}: {first}")
    return names
