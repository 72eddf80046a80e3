"""Every format a name may stand for, read from real files."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from dataset_files import CLASSES, COLOURS, make_table, png, samples, write_clip_benchmark, write_images, write_tar

from clipguard.core.errors import DatasetError, SplitError
from clipguard.data import ZeroShotDataset, list_datasets, load_dataset, load_images
from clipguard.data.formats.embedded import DESCRIPTIONS


def check(dataset: ZeroShotDataset, labels: list[int], split: str) -> None:
    """Labels, names and split are as expected, and each image has its class's colour."""
    assert dataset.split == split
    assert dataset.class_names == CLASSES
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == labels
    assert len(dataset) == len(dataset.images) == len(labels)
    for index, label in enumerate(labels):
        image = dataset.image(index)
        assert image.mode == "RGB"
        assert image.size == (8, 8)
        assert image.getpixel((0, 0)) == COLOURS[label]


@pytest.mark.parametrize("info", list_datasets(), ids=lambda info: info.name)
def test_embedded(info) -> None:
    for split, size in {"test": info.test, "train": info.train}.items():
        dataset = load_dataset(info.name, split=split)
        assert (len(dataset), len(dataset.class_names)) == (size, info.classes)
        assert np.bincount(dataset.labels).min() > 0
        assert dataset.image(0).mode == "RGB"
    assert load_dataset(info.name).split == "test"
    assert info.description


def test_embedded_are_all_described() -> None:
    assert {info.name for info in list_datasets()} == set(DESCRIPTIONS)


def test_embedded_needs_no_cache(tmp_path: Path) -> None:
    load_dataset("emoji-food")
    assert not (tmp_path / "hf-cache").exists()


def test_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "some-test.parquet"
    make_table([0, 1, 1, 0]).to_parquet(path)
    dataset = load_dataset(str(path))
    check(dataset, [0, 1, 1, 0], "all")
    assert dataset.source == str(path)


def test_links_into_the_hub_cache(tmp_path: Path) -> None:
    make_table([0, 1]).to_parquet(tmp_path / "5f2b")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "test.parquet").symlink_to(tmp_path / "5f2b")
    check(load_dataset(str(tmp_path / "snapshot" / "test.parquet")), [0, 1], "all")
    check(load_dataset(str(tmp_path / "snapshot")), [0, 1], "test")


def test_rewritten_parquet_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for seconds, labels in enumerate([[0, 1], [1, 0, 0]]):
        make_table(labels).to_parquet(path)
        os.utime(path, (seconds, seconds))
        check(load_dataset(str(path)), labels, "all")


@pytest.mark.parametrize(
    "pattern", ["data/{}-00000-of-00001.parquet", "{}.parquet", "{}/0000.parquet", "cifar_{}.parquet", "{}-0.parquet"]
)
def test_parquet_folder(tmp_path: Path, pattern: str) -> None:
    root = tmp_path / "train-and-test"  # split words above the folder do not count
    for split, labels in {"train": [0, 1, 0], "test": [1, 0]}.items():
        path = root / pattern.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        make_table(labels).to_parquet(path)
    (root / "README.md").write_text("a dataset")
    (root / "teaser.png").write_bytes(png((0, 0, 0)))
    check(load_dataset(str(root)), [1, 0], "test")
    check(load_dataset(str(root), split="train"), [0, 1, 0], "train")
    with pytest.raises(DatasetError, match=r"no split 'val'.*Splits: test, train"):
        load_dataset(str(root), split="val")


def test_shards_are_in_numeric_order(tmp_path: Path) -> None:
    for number, labels in {10: [0, 0], 2: [1]}.items():
        make_table(labels).to_parquet(tmp_path / f"part-{number}.parquet")
    check(load_dataset(str(tmp_path)), [1, 0, 0], "all")


def test_arrow_files(tmp_path: Path) -> None:
    make_table([0, 1, 1]).save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    (tmp_path / "loose").mkdir()
    arrow.rename(tmp_path / "loose" / "part-0.arrow")
    check(load_dataset(str(tmp_path / "loose")), [0, 1, 1], "all")
    check(load_dataset(str(tmp_path / "loose" / "part-0.arrow")), [0, 1, 1], "all")


def test_saved_dataset(tmp_path: Path) -> None:
    make_table([0, 1, 1]).save_to_disk(tmp_path / "plain")
    make_table([0, 1, 1], split="validation").select([2, 0]).save_to_disk(tmp_path / "split")
    check(load_dataset(str(tmp_path / "plain")), [0, 1, 1], "all")
    check(load_dataset(str(tmp_path / "split")), [1, 0], "validation")


def test_saved_dataset_dict(tmp_path: Path) -> None:
    tables = {"train": make_table([0, 1]), "val": make_table([1, 0, 1])}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    check(load_dataset(str(tmp_path / "saved")), [1, 0, 1], "val")
    check(load_dataset(str(tmp_path / "saved"), split="train"), [0, 1], "train")


def test_image_folder(tmp_path: Path) -> None:
    write_images(tmp_path, [1, 0, 1])
    (tmp_path / ".git").mkdir()
    (tmp_path / "red thing" / "Thumbs.db").write_text("")
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ["blue thing", "red thing"]  # sorted folder names
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES))  # the same names: matched by name, not by position
    check(load_dataset(str(tmp_path)), [1, 1, 0], "all")


def test_image_folder_with_splits(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES))
    write_images(tmp_path / "train", [0, 0, 1])
    write_images(tmp_path / "test", [0, 1])
    check(load_dataset(str(tmp_path)), [1, 0], "test")
    check(load_dataset(str(tmp_path), split="train"), [1, 0, 0], "train")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "car"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png((0, 0, 0)))
    dataset = load_dataset(str(tmp_path))
    assert (dataset.split, dataset.class_names) == ("all", ["car", "train"])


def test_numbered_folders_are_in_numeric_order(tmp_path: Path) -> None:
    for label in range(11):
        (tmp_path / str(label)).mkdir()
        (tmp_path / str(label) / "0.png").write_bytes(png((label, 0, 0)))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {label}" for label in range(11)))
    dataset = load_dataset(str(tmp_path), classes=names)
    assert all(dataset.image(row).getpixel((0, 0))[0] == dataset.labels[row] for row in range(11))


def test_clip_benchmark_layout(tmp_path: Path) -> None:
    root = write_clip_benchmark(tmp_path / "wds")
    dataset = load_dataset(str(root))
    check(dataset, [0, 1, 1, 0], "test")
    assert dataset.templates == ["a blurry photo of {}.", "a photo of {}."]
    assert load_dataset(str(root), templates="single").templates == ["a photo of a {}."]
    check(load_dataset(str(root), split="train"), [0, 1], "train")
    for part, labels in {"test": [0, 1, 1, 0], "test/0.tar": [0, 1, 1]}.items():  # names are found above, too
        below = load_dataset(str(root / part))
        check(below, labels, "all")
        assert below.templates == dataset.templates


def test_flat_tars_with_class_names_as_labels(tmp_path: Path) -> None:
    members = [(f"{label}/{label}.cls", CLASSES[label].encode()) for label in (0, 1)]
    members += [(f"{label}/{label}.seg.png", b"ignored") for label in (0, 1)]
    members += [(f"{label}/{label}.png", png(COLOURS[label])) for label in (0, 1)]
    write_tar(tmp_path / "x.tar", members)
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES))
    check(load_dataset(str(tmp_path / "x.tar")), [0, 1], "all")


def test_dataset_survives_pickling(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", samples([0, 1]))
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES))
    make_table([0, 1]).to_parquet(tmp_path / "x.parquet")
    for name in ("x.tar", "x.parquet"):
        check(pickle.loads(pickle.dumps(load_dataset(str(tmp_path / name)))), [0, 1], "all")


def run_offline(code: str, home: Path, **network: str) -> tuple[str, float]:
    """Run `code` in a fresh process that can reach no hub and has its cache in `home`."""
    env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9"} | network
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=home, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, time.perf_counter() - start


LOAD_HUB = """
from clipguard.data import load_dataset
from clipguard.core.errors import DatasetError, SplitError
try:
    dataset = load_dataset("hf:some-org/TwoColours@test")
    print(dataset.source, dataset.split, dataset.labels.tolist(), dataset.image(0).getpixel((0, 0)))
except DatasetError as error:
    print(error)
"""


def test_hub_without_network_fails_fast(tmp_path: Path) -> None:
    out, seconds = run_offline(LOAD_HUB, tmp_path)
    assert "http://127.0.0.1:9 cannot be reached and 'some-org/TwoColours' is not in the cache" in out
    assert "a folder of parquet files" in out
    assert seconds < 10


def test_hub_behind_a_dead_proxy_fails_fast(tmp_path: Path) -> None:
    out, seconds = run_offline(LOAD_HUB, tmp_path, HF_ENDPOINT="http://hub.invalid", HTTP_PROXY="http://127.0.0.1:9")
    assert "http://hub.invalid cannot be reached" in out
    assert seconds < 10


def test_hub_without_network_uses_the_cache(tmp_path: Path) -> None:
    make_table([0, 1]).to_parquet(tmp_path / "test.parquet")
    cache = tmp_path / "datasets"
    datasets.load_dataset("parquet", data_files={"test": str(tmp_path / "test.parquet")}, cache_dir=cache)
    config = next((cache / "parquet").iterdir())
    config.rename(config.with_name("default"))  # the place and name the hub's own copy would have
    (cache / "parquet").rename(cache / "some-org___two_colours")
    info = next(cache.glob("*/default/*/*/dataset_info.json"))
    info.write_text(info.read_text().replace(config.name, "default"))
    for arrow in info.parent.glob("parquet-*.arrow"):
        arrow.rename(arrow.with_name(arrow.name.replace("parquet", "two_colours")))
    out, _ = run_offline(LOAD_HUB, tmp_path)
    assert out.split() == f"some-org/TwoColours@{info.parent.name} test [0, 1] (255, 0, 0)".split()


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("hf:", None, "is written"), ("hf:a/b/c/d", None, "is written"), ("hf:a/b@test", "train", "keep one")],
)
def test_bad_hub_names(name: str, split: str | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, split=split)


def test_importing_the_room_is_cheap() -> None:
    code = "import sys, clipguard.data; print({'torch', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_images_without_labels_from_any_layout(tmp_path: Path) -> None:
    """A flat folder, nested folders, a table without a label column: `load_images` asks for none of it."""
    flat = tmp_path / "flat"
    (flat / "deep" / "er").mkdir(parents=True)
    (flat / "b.png").write_bytes(png(COLOURS[1]))
    (flat / "deep" / "er" / "a.png").write_bytes(png(COLOURS[0]))
    images = load_images(str(flat))
    assert (len(images), images.split) == (2, "all")
    assert {images.image(i).getpixel((0, 0)) for i in range(2)} == set(COLOURS)
    make_table([0, 1, 1]).remove_columns("label").to_parquet(tmp_path / "x.parquet")
    assert len(load_images(str(tmp_path / "x.parquet"))) == 3


def test_images_without_labels_keep_their_splits_apart(tmp_path: Path) -> None:
    write_images(tmp_path / "train", [0, 1, 1])
    write_images(tmp_path / "test", [0, 1])
    assert len(load_images(str(tmp_path), split="train")) == 3
    assert len(load_images(str(tmp_path))) == 2
    with pytest.raises(SplitError, match="no split 'dev'"):
        load_images(str(tmp_path), split="dev")
