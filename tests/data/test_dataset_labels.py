"""Columns, class names, labels and splits: what is detected, what the options change, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from dataset_files import CLASSES, COLOURS, make_table, png

from clipguard.core.errors import DatasetError
from clipguard.data import load_dataset
from clipguard.data.classes.labels import NameList, settle_labels
from clipguard.data.formats.raw_split import choose_split

IMAGES = [png(COLOURS[0]), png(COLOURS[1]), png(COLOURS[0])]


def write(path: Path, columns: dict[str, list[Any]]) -> str:
    """A parquet file without any `datasets` metadata."""
    pd.DataFrame(columns).to_parquet(path, index=False)
    return str(path)


@pytest.fixture
def names_file(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\n")
    return path


def test_plain_bytes_and_integers(tmp_path: Path, names_file: Path) -> None:
    name = write(tmp_path / "x.parquet", {"picture": IMAGES, "cls": [0, 1, 0]})
    with pytest.raises(DatasetError, match="give `classes=FILE`"):
        load_dataset(name)
    dataset = load_dataset(name, classes=names_file)
    assert (dataset.class_names, dataset.labels.tolist()) == (["cat", "dog"], [0, 1, 0])
    assert dataset.image(1).getpixel((0, 0)) == COLOURS[1]


def test_structs_and_strings(tmp_path: Path) -> None:
    cells = [{"bytes": data, "path": "x.png"} for data in IMAGES]
    dataset = load_dataset(write(tmp_path / "x.parquet", {"img": cells, "target": ["b", "a", "b"]}))
    assert (dataset.class_names, dataset.labels.tolist()) == (["a", "b"], [1, 0, 1])
    assert dataset.image(1).getpixel((0, 0)) == COLOURS[1]


def test_ambiguous_and_missing_columns(tmp_path: Path) -> None:
    two = write(tmp_path / "two.parquet", {"a": IMAGES, "b": IMAGES[::-1], "x": ["p", "q", "p"], "y": ["p", "p", "q"]})
    with pytest.raises(
        DatasetError, match=r"2 columns could be the images \(a, b\).*`image_column`. Columns: a, b, x, y"
    ):
        load_dataset(two)
    with pytest.raises(DatasetError, match=r"no label column found; name it with `label_column`"):
        load_dataset(two, image_column="a")
    with pytest.raises(DatasetError, match=r"no column 'aa' for `image_column`"):
        load_dataset(two, image_column="aa")
    with pytest.raises(DatasetError, match=r"column 'x' names image files, but 'p' in row 0 is no file"):
        load_dataset(two, image_column="x")
    with pytest.raises(DatasetError, match=r"labels must be integers or strings"):
        load_dataset(two, image_column="b", label_column="a")
    assert load_dataset(two, image_column="b", label_column="y").labels.tolist() == [0, 0, 1]
    usual = write(tmp_path / "usual.parquet", {"a": IMAGES, "label": [0, 1, 0], "class": ["p", "q", "p"]})
    with pytest.raises(DatasetError, match=r"2 columns could be the labels \(label, class\)"):
        load_dataset(usual)
    with pytest.raises(DatasetError, match="no image column found"):
        load_dataset(write(tmp_path / "none.parquet", {"label": [0, 1]}))


def test_cifar100_has_two_class_labels(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=CLASSES)
    features = datasets.Features({"img": datasets.Image(), "coarse_label": label, "fine_label": label})
    cells = [{"bytes": data, "path": None} for data in IMAGES]
    columns = {"img": cells, "coarse_label": [0, 0, 0], "fine_label": [0, 1, 1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    assert load_dataset(str(tmp_path / "x.parquet")).labels.tolist() == [0, 1, 1]


def test_classes_file_replaces_names(tmp_path: Path, names_file: Path) -> None:
    make_table([0, 1, 1]).to_parquet(tmp_path / "x.parquet")
    dataset = load_dataset(str(tmp_path / "x.parquet"), classes=names_file)
    assert (dataset.class_names, dataset.labels.tolist()) == (["cat", "dog"], [0, 1, 1])
    names_file.with_suffix(".json").write_text(json.dumps(["cat", "dog"]))
    assert load_dataset(str(tmp_path / "x.parquet"), classes=names_file.with_suffix(".json")).class_names == [
        "cat",
        "dog",
    ]


def test_a_class_label_wins_over_classnames_txt(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    make_table([0, 1]).to_parquet(tmp_path / "set" / "x.parquet")
    (tmp_path / "set" / "classnames.txt").write_text("cat\ndog")
    assert load_dataset(str(tmp_path / "set")).class_names == CLASSES


def test_names_match_by_name_before_position() -> None:
    raw = pd.Series([0, 1, 2])
    native = ["ant", "bee", "cat"]
    by_name = NameList(["dog", "cat", "bee", "ant"], "file")
    assert settle_labels(raw, native, by_name)[0].tolist() == [3, 2, 1]
    renamed = NameList(["insect", "bee", "pet"], "file")
    assert settle_labels(raw, native, renamed)[0].tolist() == [0, 1, 2]
    with pytest.raises(DatasetError, match="file has 'bee' as class 0, but in the data it is class 1"):
        settle_labels(raw, native, NameList(["bee", "wasp", "cat"], "file"))
    with pytest.raises(DatasetError, match="file has 2 class names, but the data has 3 classes"):
        settle_labels(raw, native, NameList(["x", "y"], "file"))


@pytest.mark.parametrize(
    ("raw", "native", "message"),
    [
        ([], CLASSES, "the data set is empty"),
        ([0, None, 1], CLASSES, r"row 1 has no label \(1 of 3 rows have none\)"),
        (["a", None, "b"], None, "row 1 has no label"),
        ([0, 1, -1, -1], CLASSES, r"row 2 has no label \(2 of 4"),
        ([0, 1, 2], CLASSES, r"row 2 has label 2, but there are 2 class names \(0 to 1\)"),
        ([0, -2], CLASSES, "row 1 has label -2"),
        ([0, 0], ["only"], r"only one class \('only'\)"),
        (["a", "a"], None, "only one class"),
        ([0, 1], ["a", "b", "a"], "duplicate class names: 'a'"),
        ([0, 1], ["a", " "], "a class name is empty"),
        ([0, 1], None, "integers without class names"),
        ([0.5, 1.0], CLASSES, "must be integers or strings, not floating"),
        ([[0, 1], [1]], CLASSES, "must be integers or strings"),
    ],
)
def test_bad_labels(raw: list[Any], native: list[str] | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        settle_labels(pd.Series(raw), native, None)


def test_bad_labels_in_a_file_name_the_dataset(tmp_path: Path, names_file: Path) -> None:
    name = write(tmp_path / "x.parquet", {"image": IMAGES, "label": [0, 7, 1]})
    with pytest.raises(DatasetError) as caught:
        load_dataset(name, classes=names_file)
    assert str(caught.value).startswith(f"{name}: row 1 has label 7")
    assert "\n" not in str(caught.value)


def test_missing_labels_in_a_class_label_column(tmp_path: Path) -> None:
    table = make_table([0, 1, 1])
    cells = [{"bytes": data, "path": None} for data in IMAGES]
    for label in (None, -1):
        columns = {"image": cells, "label": [0, 1, label]}
        datasets.Dataset.from_dict(columns, features=table.features).to_parquet(tmp_path / f"{label}.parquet")
        with pytest.raises(DatasetError, match="row 2 has no label"):
            load_dataset(str(tmp_path / f"{label}.parquet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"cat\n\ndog\n", "line 2 is blank"),
        (b"cat\ncat\n", "duplicate class names: 'cat'"),
        (b"cat\n", "only one class"),
        (b'["cat", ', "not valid JSON"),
        (b'["cat", 1]', "JSON list of strings"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_classes_file(tmp_path: Path, content: bytes, message: str) -> None:
    name = write(tmp_path / "x.parquet", {"image": IMAGES, "label": [0, 1, 0]})
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, classes=tmp_path / "names")
    with pytest.raises(DatasetError, match=r"cannot read .*absent: No such file"):
        load_dataset(name, classes=tmp_path / "absent")


def test_default_split() -> None:
    assert choose_split(["train", "val", "test"], None) == "test"
    assert choose_split(["train", "val", "validation"], None) == "validation"
    assert choose_split(["train", "val"], None) == "val"
    assert choose_split(["extra"], None) == "extra"
    with pytest.raises(DatasetError, match=r"several splits .*`split`. Splits: train, extra"):
        choose_split(["train", "extra"], None)
    with pytest.raises(DatasetError, match=r"Did you mean 'train'\? Splits: train"):
        choose_split(["train"], "trian")
