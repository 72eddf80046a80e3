"""The datasets that come with clipguard: parquet files under `assets/datasets/<name>/{train,test}.parquet`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from clipguard.data.formats.raw_split import RawSplit, Request, choose_split
from clipguard.data.templates import DRAWING

CONCEPT = "concept"  # the column with the name of the emoji
DESCRIPTIONS = {
    "emoji-animals": "emoji of animals and plants",
    "emoji-food": "emoji of food, drink and tableware",
    "emoji-objects": "emoji of clothes, tools and other objects",
    "emoji-travel": "emoji of vehicles, buildings, places and sky",
}


@dataclass(frozen=True)
class DatasetInfo:
    """One embedded dataset: its number of classes, and of images in each split."""

    name: str
    classes: int
    train: int
    test: int
    description: str


def embedded_folders() -> dict[str, Path]:
    """Embedded dataset name -> folder of its parquet files, sorted by name."""
    root = Path(str(files("clipguard"))) / "assets" / "datasets"
    if not root.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(root.iterdir()) if any(folder.glob("*.parquet"))}


def list_datasets() -> list[DatasetInfo]:
    """The embedded datasets, sorted by name. Reads only the parquet footers."""
    import pyarrow.parquet as pq

    listed = []
    for name, folder in embedded_folders().items():
        footers = {path.stem: pq.read_metadata(path) for path in folder.glob("*.parquet")}
        sizes = {split: footer.num_rows for split, footer in footers.items()}
        info = json.loads(next(iter(footers.values())).metadata[b"huggingface"])["info"]
        listed.append(
            DatasetInfo(
                name=name,
                classes=len(info["features"]["label"]["names"]),
                train=sizes.get("train", 0),
                test=sizes.get("test", 0),
                description=DESCRIPTIONS.get(name, ""),
            )
        )
    return listed


def open_embedded(name: str, request: Request) -> RawSplit:
    """A split of an embedded data set. Held in memory (about 1 MB), so it works where no cache can be written.

    The caption of a drawing has the name of its emoji: "a drawing of a rooster."
    """
    import datasets
    import pyarrow.parquet as pq

    from clipguard.data.formats.tables import split_of_table

    paths = {path.stem: path for path in sorted(embedded_folders()[name].glob("*.parquet"))}
    split = choose_split(paths, request.split)
    table = datasets.Dataset(pq.read_table(paths[split]))
    columns = request if request.caption_column else replace(request, caption_column=CONCEPT)
    raw = split_of_table(table, str(paths[split]), split, columns)
    raw.templates = DRAWING
    if raw.captions is not None and request.caption_column is None:
        raw.captions = [tuple(DRAWING.single[0].replace("{}", name) for name in names) for names in raw.captions]
    return raw
