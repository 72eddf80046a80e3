"""Per-image rows: their columns and types, and how they become a file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TypedDict, cast, get_type_hints

import pandas as pd


class Sample(TypedDict):
    """One row of samples.parquet: how one image fared in one cell (docs/results.md)."""

    model: str
    dataset: str
    index: int
    label: int
    norm: str
    eps: float  # as in the tables: units of 1/255 for linf
    attack: str
    clean_pred: int
    adv_pred: int
    robust: bool
    broken_by: str | None
    distance: float  # in the units of eps
    margin: float


_DTYPES = {str: "string", str | None: "string", int: "int64", float: "float64", bool: "bool"}
SAMPLE_COLUMNS = {name: _DTYPES[hint] for name, hint in get_type_hints(Sample).items()}


def sample_frame(rows: Iterable[Sample]) -> pd.DataFrame:
    """Per-image rows with the documented columns and types. Rows that come one by one are not held all at once."""
    columns: dict[str, list[object]] = {name: [] for name in SAMPLE_COLUMNS}
    for row in cast(Iterable[dict[str, object]], rows):
        for name, values in columns.items():
            values.append(row[name])
    return pd.DataFrame(columns, columns=list(SAMPLE_COLUMNS)).astype(SAMPLE_COLUMNS)


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """The content of a parquet file, without the index."""
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    return content.getvalue()
