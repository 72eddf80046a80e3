"""Lists as people have them: JSON, a pasted Python list or dict, YAML, quoted or numbered lines -> plain entries."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipguard.core.errors import DatasetError, first_line

QUOTED = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
# Strings between commas, over several lines or not. Without the comma Python would join two of them to one.
STRINGS = re.compile(rf"\s*(?:{QUOTED})\s*(?:,\s*(?:{QUOTED})\s*)*,?\s*")
START = re.compile(r"""\[\s*(?:['"\[(]|\{\s*['"]|lambda\b|f['"])|\{\s*['"\d]|[A-Za-z_]\w*\s*=\s*[\[{(]""")
PAIRS = {"'": "'", '"': '"', "`": "`", "\u2018": "\u2019", "\u201c": "\u201d", "\u201e": "\u201c", "\xab": "\xbb"}
NUMBER = re.compile(r"(\d+)(?:[.):,;]|\s-)\s+")
BULLET = re.compile(r"[-*\u2022]\s+")


@dataclass(frozen=True)
class Lines:
    """Cleaned lines of a file, where each is from, and in words what was taken off."""

    texts: list[str]
    numbers: list[int]
    done: tuple[str, ...] = ()


def existing_file(text: str) -> Path | None:
    """The file that an option names, if there is one."""
    path = Path(text).expanduser()
    try:
        return path if path.is_file() else None
    except OSError:  # too long for a path
        return None


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Raises DatasetError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetError(f"cannot read {path}: {reason}; give a UTF-8 text file") from error


class _RepeatedKeyError(Exception):
    """A key that a table has twice: it would swallow a class."""


def parse_literal(text: str, path: Path) -> Any:
    """The JSON, YAML or Python value that a text is, None if it is lines. JSON goes first: it was always read.

    Raises DatasetError for a text that begins like one and is broken, and for a key that is there twice.
    """
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DatasetError(f"{path} is not valid YAML: {first_line(error)}; give one entry a line") from error
    bare = STRINGS.fullmatch(text) or re.match(r"(lambda \w+\s*:|f['\"])", text.lstrip())
    listed = f"[{text}]" if bare else ""
    if not listed and suffix != ".json" and not START.match(text.lstrip()):
        return None
    try:
        return json.loads(listed or text, object_pairs_hook=_distinct_keys)
    except _RepeatedKeyError as error:
        raise DatasetError(f"{path} has the key {error} twice; remove one") from None
    except json.JSONDecodeError as not_json:
        try:
            return _python_value(listed or text)
        except _RepeatedKeyError as error:
            raise DatasetError(f"{path} has the key {error} twice; remove one") from None
        except (SyntaxError, ValueError, TypeError):
            if listed:
                return None  # the lines will tell where it is wrong
            raise DatasetError(
                f"{path} is not valid JSON: {not_json}; give a list of strings, or one entry a line"
            ) from not_json


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_distinct([key for key, _ in pairs])
    return dict(pairs)


def _check_distinct(keys: Sequence[Any]) -> None:
    if len(set(keys)) < len(keys):
        raise _RepeatedKeyError(repr(next(key for key in keys if keys.count(key) > 1)))


def _python_value(text: str) -> Any:
    """The value of one expression or assignment. Raises SyntaxError or ValueError for anything else."""
    body = ast.parse(text.strip()).body
    if len(body) != 1 or not isinstance(body[0], (ast.Expr, ast.Assign, ast.AnnAssign)) or body[0].value is None:
        raise ValueError
    value = body[0].value
    if isinstance(value, ast.Dict):
        _check_distinct([ast.literal_eval(key) for key in value.keys if key is not None])
    return [_element(part) for part in value.elts] if isinstance(value, (ast.List, ast.Tuple)) else _element(value)


def _element(node: ast.expr) -> Any:
    """A literal, or the prompt of `lambda c: f'a photo of a {c}.'` as CLIP's notebooks have it, with `{}` for `c`.

    Raises ValueError for any other code.
    """
    argument = None
    if isinstance(node, ast.Lambda) and len(node.args.args) == 1:
        argument, node = node.args.args[0].arg, node.body
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(part, argument) for part in node.values)
    if argument is None:
        return ast.literal_eval(node)
    match node:  # 'a photo of a {}.'.format(c)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format"), args=[ast.Name(id=name)]):
            if name == argument and not node.keywords:
                return text
    raise ValueError


def _part(node: ast.expr, argument: str | None) -> str:
    """A part of an f-string; its one name is the class's."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    plain = isinstance(node, ast.FormattedValue) and node.format_spec is None and node.conversion == -1
    if plain and isinstance(node.value, ast.Name) and argument in (None, node.value.id):  # type: ignore[attr-defined]
        return "{}"
    raise ValueError


def clean_lines(text: str, path: Path) -> Lines:
    """Stripped lines without comments, bullets, commas at the end, and quotes around all of them.

    Only what every line has is taken off: where a few have it, it is either part of them or a mistake.
    Raises DatasetError for a blank line, for none, and for commas or quotes that only some lines have.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not any(lines):
        raise DatasetError(f"{path} is empty; write one entry a line")
    if "" in lines:
        # Skipped in silence, it would shift the meaning of every later class.
        raise DatasetError(f"{path}: line {lines.index('') + 1} is blank; remove it")
    kept = Lines(lines, list(range(1, len(lines) + 1)))
    for step in (_drop_comments, _drop_pipes, _drop_bullets, _drop_ends, unquote_lines):
        kept = step(kept, path)
    return kept


def _drop_comments(lines: Lines, path: Path) -> Lines:
    marked = [text.startswith(("#", "//")) for text in lines.texts]
    if not any(marked) or all(marked):
        return lines
    for text, number, mark in zip(lines.texts, lines.numbers, marked, strict=True):
        if mark and not re.match(r"(#+|//+)(\s|$)", text):
            raise DatasetError(f"{path}: line {number} begins like a comment: {text!r}; remove it, or give a JSON list")
    rest = [(t, n) for t, n, mark in zip(lines.texts, lines.numbers, marked, strict=True) if not mark]
    said = f"{sum(marked)} comment lines"
    return Lines([t for t, _ in rest], [n for _, n in rest], (*lines.done, said))


def _drop_pipes(lines: Lines, path: Path) -> Lines:  # noqa: ARG001  # the steps have one form
    """Rows of a Markdown table, without its line of dashes."""
    if len(lines.texts) < 2 or not all(text.startswith("|") and text.endswith("|") for text in lines.texts):
        return lines
    rows = [(t, n) for t, n in zip(lines.texts, lines.numbers, strict=True) if not re.fullmatch(r"[|:\s-]+", t)]
    return Lines([t.strip("| \t") for t, _ in rows], [n for _, n in rows], (*lines.done, "the bars of a table"))


def drop_numbers(lines: Lines) -> Lines:
    """Without the numbers of a list, where every line has one and they count from 0 or 1."""
    found = [NUMBER.match(text) for text in lines.texts]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < len(found) or numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return lines
    return Lines([NUMBER.sub("", text, count=1) for text in lines.texts], lines.numbers, (*lines.done, "numbers"))


def _drop_bullets(lines: Lines, path: Path) -> Lines:  # noqa: ARG001  # the steps have one form
    if not all(BULLET.match(text) for text in lines.texts):
        return lines
    return Lines([BULLET.sub("", text, count=1) for text in lines.texts], lines.numbers, (*lines.done, "bullets"))


def _drop_ends(lines: Lines, path: Path) -> Lines:
    for end, name in ((",", "comma"), (";", "semicolon")):
        has = [text.endswith(end) for text in lines.texts]
        if not any(has):
            continue
        if not all(has[:-1]) or len(has) == 1:
            some = has.index(True) if len(has) > 1 else 0
            raise DatasetError(
                f"{path}: line {lines.numbers[some]} ends with a {name}, and not all lines do: {lines.texts[some]!r}; "
                "give one entry a line, without it"
            )
        texts = [text.removesuffix(end).rstrip() for text in lines.texts]
        return Lines(texts, lines.numbers, (*lines.done, f"the {name}s at the end of lines"))
    return lines


def unquote_lines(lines: Lines, path: Path) -> Lines:
    """Without quotes, where all lines are in quotes, or those with commas or quotes inside, as programs write them.

    Raises DatasetError where others are.
    """
    quoted = [is_quoted(text) for text in lines.texts]
    if not any(quoted):
        return lines
    texts, number = list(lines.texts), lines.numbers[quoted.index(True)]
    if not all(quoted):
        # As programs write a column: only entries with a comma or a quote inside are put in quotes.
        odd = [t for t, q in zip(texts, quoted, strict=True) if q and not (t[0] == '"' and set(t[1:-1]) & {",", '"'})]
        if odd and odd != ['"{}"']:  # a prompt of its own: the name in quotes
            number = lines.numbers[lines.texts.index(odd[0])]
            raise DatasetError(
                f"{path}: line {number} is in quotes, and not all lines are: {odd[0]!r}; put all in quotes, or none"
            )
        if odd:
            return lines
    texts = [unquote(text) if q else text for text, q in zip(texts, quoted, strict=True)]
    return Lines(texts, lines.numbers, (*lines.done, "quotes"))


def is_quoted(text: str) -> bool:
    """Whether a text is one string in quotes, as Python or a table writes it."""
    if len(text) < 2 or text[-1] != PAIRS.get(text[0]):
        return False
    inside = text[1:-1].replace("\\" + text[0], "").replace(text[0] * 2, "")
    return text[0] not in inside and text[-1] not in inside


def unquote(text: str) -> str:
    """What stands between the quotes, with `\\'` or `''` for one of them."""
    return text[1:-1].replace("\\" + text[0], text[0]).replace(text[0] * 2, text[0]).strip()


def strings(value: Any, refuse: Callable[[str], DatasetError]) -> list[str]:
    """A list of strings, stripped. Raises what `refuse` makes of the reason for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise refuse("it is no list")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, str):
            raise refuse(f"entry {number} is {entry!r}, without quotes")
    return [entry.strip() for entry in value]
