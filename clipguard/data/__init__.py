"""A dataset name, hub id or path -> images on demand, labels, class names and templates.

`load_dataset` goes the way: `registry.py` knows the field's data sets, `formats/` opens a split of any format as a
`RawSplit`, `classes/` settles what its labels mean and how classes are called, `templates.py` the prompts.

Importing this package is cheap: NumPy and what else is heavy is imported when it is first used, and `datasets` and
pandas when a dataset is opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipguard.data.dataset import ImageDataset, ZeroShotDataset
    from clipguard.data.formats.embedded import DatasetInfo, list_datasets
    from clipguard.data.registry import DatasetEntry, expand_groups
    from clipguard.data.sources import load_dataset, load_images

__all__ = [
    "DatasetEntry",
    "DatasetInfo",
    "ImageDataset",
    "ZeroShotDataset",
    "expand_groups",
    "list_datasets",
    "load_dataset",
    "load_images",
]

HOMES = {
    "DatasetEntry": "registry",
    "DatasetInfo": "formats.embedded",
    "ImageDataset": "dataset",
    "ZeroShotDataset": "dataset",
    "expand_groups": "registry",
    "list_datasets": "formats.embedded",
    "load_dataset": "sources",
    "load_images": "sources",
}


def __getattr__(name: str) -> Any:
    """Import the names on first use (PEP 562), so that `clipguard --help` stays fast."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
