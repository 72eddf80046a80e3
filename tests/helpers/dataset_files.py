"""Real files of every format, small: images of one colour a class, so that a row can be told by its pixels."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import datasets
import PIL.Image

CLASSES = ["red thing", "blue thing"]
COLOURS = [(255, 0, 0), (0, 0, 255)]


def png(colour: tuple[int, ...] | int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    PIL.Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def make_table(labels: list[int], split: str | None = None) -> datasets.Dataset:
    """A CIFAR-like table: Image and ClassLabel columns."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    cells = [{"bytes": png(COLOURS[label]), "path": None} for label in labels]
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features, split=split)


def write_images(root: Path, labels: list[int]) -> None:
    """`class/xxx.png`."""
    for index, label in enumerate(labels):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:03d}.png").write_bytes(png(COLOURS[label]))


def write_tar(path: Path, samples: list[tuple[str, bytes]]) -> Path:
    """A tar of (member name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(labels: list[int], start: int = 0) -> list[tuple[str, bytes]]:
    """Members of CLIP_benchmark's tars: s0000000.cls, s0000000.png, ..."""
    members = []
    for index, label in enumerate(labels, start):
        members += [(f"s{index:07d}.cls", str(label).encode()), (f"s{index:07d}.png", png(COLOURS[label]))]
    return members


def write_clip_benchmark(root: Path) -> Path:
    """CLIP_benchmark's layout: two shards of test, one of train."""
    write_tar(root / "test" / "0.tar", samples([0, 1, 1]))
    write_tar(root / "test" / "1.tar", samples([0], start=3))
    write_tar(root / "train" / "0.tar", samples([0, 1]))
    (root / "test" / "nshards.txt").write_text("2")
    (root / "train" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    (root / "zeroshot_classification_templates.txt").write_text("a blurry photo of {c}.\na photo of {c}.\n")
    return root
