"""Per-image rows: their columns and types, and how they become a file."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd

SAMPLE_COLUMNS = {
    "model": "string",
    "dataset": "string",
    "index": "int64",
    "label": "int64",
    "norm": "string",
    "eps": "float64",
    "attack": "string",
    "clean_pred": "int64",
    "adv_pred": "int64",
    "robust": "bool",
    "broken_by": "string",
    "distance": "float64",
    "margin": "float64",
}


def sample_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Per-image rows with the documented columns and types."""
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)).astype(SAMPLE_COLUMNS)


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """The content of a parquet file, without the index."""
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    return content.getvalue()
