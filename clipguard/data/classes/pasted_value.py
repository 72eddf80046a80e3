"""A list as it stands in a program (JSON, Python, YAML) -> its value, of which nothing is ever run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipguard.core.errors import DatasetError, first_line

QUOTED = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
# Strings between commas, over several lines or not. Without the comma Python would join two of them to one.
STRINGS = re.compile(rf"\s*(?:{QUOTED})\s*(?:,\s*(?:{QUOTED})\s*)*,?\s*")
START = re.compile(r"""\[\s*(?:['"\[(]|\{\s*['"]|lambda\b|f['"])|\{\s*['"\d]|[A-Za-z_]\w*\s*=\s*[\[{(]""")


class _RepeatedKeyError(Exception):
    """A key that a table has twice: it would swallow a class."""


def parse_literal(text: str, path: Path) -> Any:
    """The JSON, YAML or Python value that a text is, None if it is lines. JSON goes first: it was always read.

    Raises:
        DatasetError: for a text that begins like one and is broken, and for a key that is there twice.
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


def strings(value: Any, refuse: Callable[[str], DatasetError]) -> list[str]:
    """A list of strings, stripped. Raises what `refuse` makes of the reason for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise refuse("it is no list")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, str):
            raise refuse(f"entry {number} is {entry!r}, without quotes")
    return [entry.strip() for entry in value]
