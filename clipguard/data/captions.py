"""Captions of images: in a column of a table, in text or JSON beside each image, or in a list of files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from clipguard.core.errors import CaptionError, DatasetError, did_you_mean
from clipguard.data.text_files import read_text

CAPTION_NAMES = ("caption", "captions", "text", "txt", "sentence", "sentences", "description", "alt_text")
LISTS = ("metadata.jsonl", "metadata.csv")  # of a folder of images, in the layout of Hugging Face's `imagefolder`
Captions = Sequence[tuple[str, ...]]
"""Of each row, one or more."""


def table_captions(table: Any, named: str | None) -> Captions:
    """The captions of a `datasets.Dataset`: of the column that was named, else of the only text of a usual name.

    A cell is a text or a list of texts.

    Raises:
        CaptionError: if there is no such column, or more than one.
        DatasetError: for a column of something else, or an empty caption.
    """
    column = _find_column(table.features, named)
    cells = table.select_columns([column]).to_pandas()[column]
    return check_captions([_texts(cell) for cell in cells], lambda row: f"row {row} of column {column!r}")


def _find_column(features: Any, named: str | None) -> str:
    listing = f"Columns: {', '.join(features)}."
    if named is None:
        found = [name for name in features if name.lower() in CAPTION_NAMES and _holds_texts(features[name])]
        if len(found) == 1:
            return str(found[0])
        problem = f"{len(found)} columns could be the captions ({', '.join(found)})" if found else "it has no captions"
        raise CaptionError(f"{problem}; name their column with `caption_column`. {listing}")
    if named not in features:
        raise DatasetError(f"no column {named!r} for `caption_column`.{did_you_mean(named, features)} {listing}")
    if not _holds_texts(features[named]):
        raise DatasetError(f"column {named!r} holds no text; name another with `caption_column`. {listing}")
    return named


def _holds_texts(feature: Any) -> bool:
    """Whether cells are texts, or lists of them."""
    return getattr(getattr(feature, "feature", feature), "dtype", None) in ("string", "large_string")


def _texts(cell: Any) -> tuple[str, ...]:
    """What a cell, or a value of JSON, says: its texts that are not empty."""
    cells = [cell] if isinstance(cell, str) or not isinstance(cell, Iterable) else list(cell)
    return tuple(" ".join(text.split()) for text in cells if isinstance(text, str) and text.strip())


def check_captions(captions: list[tuple[str, ...]], where: Callable[[int], str]) -> Captions:
    """The captions, if each row has one.

    Raises:
        DatasetError: for the first row without; `where` says what it is called.
    """
    empty = [row for row, texts in enumerate(captions) if not texts]
    if empty:
        raise DatasetError(
            f"{where(empty[0])} has no caption ({len(empty):,} of {len(captions):,} rows); remove these rows, or name "
            "other captions with `caption_column`"
        )
    return captions


def json_caption(content: bytes, key: str | None, where: str) -> tuple[str, ...]:
    """The captions in the JSON beside an image, under the key that was named, else a usual one; empty without.

    Raises:
        DatasetError: for what is no JSON, or has not the key.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise DatasetError(f"{where} is no JSON ({error}); repair it, or remove the image") from error
    if not isinstance(found, dict):
        return _texts(found) if key is None else ()
    if key is not None and key not in found:
        raise DatasetError(f"{where} has no {key!r} for `caption_column`. It has {', '.join(found) or 'nothing'}.")
    return _texts(next((found[name] for name in ([key] if key else found) if name == key or _is_usual(name)), None))


def _is_usual(name: str) -> bool:
    return name.lower() in CAPTION_NAMES


def captions_beside(images: Sequence[str], folders: Sequence[Path], named: str | None) -> Captions:
    """The captions of image files: of `metadata.jsonl` or `metadata.csv`, else of an `x.txt` beside each `x.jpg`.

    Args:
        images: paths.
        folders: where the list may lie; its `file_name` is relative to it.
        named: the list's column, if it was named.

    Raises:
        CaptionError: if there are none.
        DatasetError: if one is missing.
    """
    listed = next((folder / name for folder in folders for name in LISTS if (folder / name).is_file()), None)
    if listed is not None:
        by_file = _read_list(listed, named)
        captions = [by_file.get(Path(image).absolute().as_posix(), ()) for image in images]
        return check_captions(captions, lambda row: f"{images[row]}, as {listed} lists it,")
    files = [Path(image).with_suffix(".txt") for image in images]
    if named is not None or not any(file.is_file() for file in files):
        raise CaptionError(
            f"its images have no captions; write them to {folders[0] / LISTS[0]} (a line: "
            '{"file_name": "x.jpg", "caption": "a cat"}), or that of x.jpg to x.txt'
        )
    return check_captions(
        [_texts(read_text(file)) if file.is_file() else () for file in files], lambda row: str(images[row])
    )


def _read_list(path: Path, named: str | None) -> dict[str, tuple[str, ...]]:
    """Captions by absolute path of the image."""
    text = read_text(path)
    if path.suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    else:
        rows = [_json_row(line, path) for line in text.splitlines() if line.strip()]
    columns = list(rows[0]) if rows else []
    column = named or next((name for name in columns if _is_usual(name)), None)
    if column not in columns or "file_name" not in columns:
        need = f"{column or 'caption'!r}" if "file_name" in columns else "'file_name'"
        raise CaptionError(f"{path} has no {need}; name its captions with `caption_column`. It has {columns}.")
    return {(path.parent / row["file_name"]).absolute().as_posix(): _texts(row.get(column)) for row in rows}


def _json_row(line: str, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DatasetError(f"{path}: {line[:60]!r} is no JSON object; write one a line")
    return row
