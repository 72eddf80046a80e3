"""A dataset name, hub id or path -> images on demand, labels, class names and templates.

`load_dataset` goes the way: `registry.py` knows the field's data sets, `formats/` opens a split of any format as a
`RawSplit`, `classes/` settles what its labels mean and how classes are called, `templates.py` the prompts.

Nothing heavy is imported here: `datasets` and pandas load when a dataset is opened, so `clipguard --help` stays fast.
"""

from clipguard.data.dataset import ImageDataset, ZeroShotDataset
from clipguard.data.formats.embedded import DatasetInfo, list_datasets
from clipguard.data.registry import DatasetEntry, expand_groups, registry
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
    "registry",
]
