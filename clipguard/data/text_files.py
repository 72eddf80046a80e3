"""Small text files that users write: class names, templates."""

from __future__ import annotations

from pathlib import Path

from clipguard.core.errors import DatasetError


def existing_file(text: str) -> Path | None:
    """The file that a setting names, if there is one; None for any other text."""
    path = Path(text).expanduser()
    try:
        return path if path.is_file() else None
    except OSError:  # too long for a path
        return None


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        DatasetError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DatasetError(f"cannot read {path}: {reason}; give a UTF-8 text file") from error
