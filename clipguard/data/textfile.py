"""Small text files beside or for a dataset: class names and templates, one a line."""

from __future__ import annotations

import json
from pathlib import Path

from clipguard.errors import DatasetError


def read_lines(path: Path) -> list[str]:
    """Stripped lines, at least one, none blank but at the end. Raises DatasetError otherwise."""
    lines = [line.strip() for line in _read(path).rstrip().splitlines()]
    if not lines:
        raise DatasetError(f"{path} is empty; write one entry a line")
    if "" in lines:
        # Skipped in silence, it would shift the meaning of every later class.
        raise DatasetError(f"{path}: line {lines.index('') + 1} is blank; remove it")
    return lines


def read_class_names(path: Path) -> list[str]:
    """Class names in label order: a JSON list of strings, or one a line. Raises DatasetError if it is neither."""
    text = _read(path)
    if path.suffix.lower() != ".json" and not text.lstrip().startswith("["):
        return read_lines(path)
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}; give a list of strings, or one name a line") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path} must be a JSON list of strings, one for each class in label order")
    return [name.strip() for name in names]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetError(f"cannot read {path}: {reason}; give a UTF-8 text file") from error
