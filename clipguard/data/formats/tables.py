"""Tables: parquet and arrow files, and `save_to_disk` folders, all through the `datasets` library, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipguard.core.errors import DatasetError, first_line
from clipguard.data.captions import table_captions
from clipguard.data.classes.labels import EMPTY
from clipguard.data.formats.columns import find_image_column, find_label_column
from clipguard.data.formats.library_cache import check_cache
from clipguard.data.formats.paths import Located, files_by_split
from clipguard.data.formats.raw_split import ALL, RawSplit, Request, choose_split, sidecar_names
from clipguard.data.formats.table_images import table_images


def split_of_table(table: Any, source: str, split: str, request: Request, folder: Path | None = None) -> RawSplit:
    """A split of a `datasets.Dataset`: columns found, images left encoded.

    Args:
        table: a `datasets.Dataset`.
        source: where it is from; see `RawSplit`.
        split: its name.
        request: which columns.
        folder: where paths in an image column may start.

    Raises:
        DatasetError: if a column is unclear.
    """
    import datasets
    import pandas as pd

    image_column = find_image_column(table.features, request.image_column)
    images = table_images(table, image_column, folder)
    captions = table_captions(table, request.caption_column) if request.captioned else None
    if not request.labelled:
        return RawSplit(source, split, images, pd.Series(), captions=captions)
    label_column = find_label_column(table.features, request.label_column)
    feature = table.features[label_column]
    labels = table.select_columns([label_column]).to_pandas()[label_column]
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return RawSplit(source, split, images, labels, class_names=names, captions=captions)


def open_parquet(located: Located, request: Request) -> RawSplit:
    """A parquet file, or a folder of them. `datasets` converts the split once into its cache, to memory-map it."""
    import datasets
    import pyarrow.parquet as pq

    def load(paths: list[str]) -> Any:
        if sum(pq.read_metadata(path).num_rows for path in paths) == 0:  # from_parquet has no clear error for it
            raise DatasetError(EMPTY)
        return datasets.Dataset.from_parquet(paths)

    return _open_files(located, request, load)


def open_arrow(located: Located, request: Request) -> RawSplit:
    """An arrow file as `datasets` writes them (IPC stream), or a folder of them; memory-mapped where it is."""
    import datasets

    def load(paths: list[str]) -> Any:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths])

    return _open_files(located, request, load)


def open_saved(located: Located, request: Request) -> RawSplit:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`; memory-mapped where it is."""
    import datasets

    with _readable(located.path):
        loaded = datasets.load_from_disk(str(located.path))
    if not isinstance(loaded, datasets.DatasetDict):
        loaded = {str(loaded.split or ALL): loaded}
    split = choose_split(loaded, request.split)
    raw = split_of_table(loaded[split], str(located.path), split, request, located.root)
    raw.listed_names = sidecar_names([located.path])
    return raw


def _open_files(located: Located, request: Request, load: Callable[[list[str]], Any]) -> RawSplit:
    splits = files_by_split(located)
    split = choose_split(splits, request.split)
    located.notice_skipped()
    with _readable(located.path), _no_progress_bars():
        table = load([str(located.root / file) for file in splits[split]])
    raw = split_of_table(table, str(located.path), split, request, located.root)
    raw.listed_names = sidecar_names([located.root])
    return raw


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # pyarrow and datasets share no base class for "this file is broken"
        check_cache(error)
        raise DatasetError(
            f"cannot read {path}: {first_line(error)}; corrupt, or of another format: copy or export it again"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """`datasets` draws bars on stderr; only `cli/` may print."""
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
