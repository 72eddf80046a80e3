"""The house rules that a linter does not know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import clipguard

PACKAGE = Path(clipguard.__file__).parent
LONGEST_FUNCTION = 60  # lines, with its docstring
LONGEST_FILE = 400
MOST_FILES = 13  # of a folder, with its __init__.py


def functions() -> Iterator[tuple[str, int]]:
    """Where a function is, and its lines."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path.relative_to(PACKAGE)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_no_function_is_long() -> None:
    assert [where for where, lines in functions() if lines > LONGEST_FUNCTION] == []


def test_no_file_is_long_and_no_folder_a_drawer() -> None:
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [path.name for path, lines in files.items() if lines > LONGEST_FILE] == []
    folders = {path.parent for path in files}
    assert [f.name for f in folders if len(list(f.glob("*.py"))) > MOST_FILES] == []


def test_every_file_and_room_says_what_is_in_it() -> None:
    missing = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) and path.name != "__main__.py"
    ]
    assert missing == []
