"""A dataset name, hub id or path -> images on demand, labels, class names and templates.

Nothing heavy is imported here: `datasets` and pandas load when a dataset is opened, so `clipguard --help` stays fast.
"""

from clipguard.data.dataset import ImageDataset, ZeroShotDataset
from clipguard.data.embedded import DatasetInfo, list_datasets
from clipguard.data.sources import load_dataset, load_images

__all__ = ["DatasetInfo", "ImageDataset", "ZeroShotDataset", "list_datasets", "load_dataset", "load_images"]
