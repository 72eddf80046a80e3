"""Image columns of arrays and of paths, and caches that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from dataset_files import CLASSES, make_table, png

from clipguard.core.errors import DatasetError
from clipguard.core.notices import noticing
from clipguard.data import load_dataset, load_images

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8) for _ in range(3)]


def write(path: Path, cells: list[Any], feature: Any, column: str = "image") -> str:
    """A parquet file of one image column and labels 0, 1, 0, ..."""
    features = datasets.Features({column: feature, "label": datasets.ClassLabel(names=CLASSES)})
    table = datasets.Dataset.from_dict({column: cells, "label": [i % 2 for i in range(len(cells))]}, features=features)
    table.to_parquet(path)
    table.save_to_disk(path.with_suffix(""))
    return str(path)


ARRAY, LISTS = (
    datasets.Array3D((8, 9, 3), "uint8"),
    datasets.List(datasets.List(datasets.List(datasets.Value("int64")))),
)


@pytest.mark.parametrize("feature", [ARRAY, LISTS], ids=["Array3D", "lists"])
def test_arrays_of_pixels_are_images(tmp_path: Path, feature: Any) -> None:
    path = write(tmp_path / "x.parquet", [p.tolist() for p in PIXELS], feature)
    for name in (path, str(tmp_path / "x")):
        dataset = load_dataset(name)
        assert dataset.labels.tolist() == [0, 1, 0]
        for index, pixels in enumerate(PIXELS):
            assert (np.asarray(dataset.image(index)) == pixels).all()
    assert len(load_images(path)) == 3


def test_grey_channels_first_and_sizes_that_differ(tmp_path: Path) -> None:
    grey = write(tmp_path / "grey.parquet", [p[..., 0].tolist() for p in PIXELS], datasets.Array2D((8, 9), "uint8"))
    assert (np.asarray(load_dataset(grey).image(1)) == PIXELS[1][..., :1].repeat(3, 2)).all()
    one = write(tmp_path / "one.parquet", [p[..., :1].tolist() for p in PIXELS], LISTS)
    assert (np.asarray(load_dataset(one).image(1)) == PIXELS[1][..., :1].repeat(3, 2)).all()
    turned = [p.transpose(2, 0, 1).tolist() for p in PIXELS]
    first = write(tmp_path / "first.parquet", turned, datasets.Array3D((3, 8, 9), "uint8"))
    with noticing() as notices:
        assert (np.asarray(load_dataset(first).image(2)) == PIXELS[2]).all()
    assert "arrays of shape (3, 8, 9) are taken as channels, height, width" in notices[0]["text"]
    sizes = [p[:size].tolist() for size, p in zip((8, 5, 7), PIXELS, strict=True)]
    assert (np.asarray(load_dataset(write(tmp_path / "s.parquet", sizes, LISTS)).image(1)) == PIXELS[1][:5]).all()


@pytest.mark.parametrize(
    ("cell", "kind", "message"),
    [
        (np.zeros((3, 8, 3)), "uint8", r"shape \(3, 8, 3\), whose channels may be the first or the last"),
        (np.zeros((8, 9, 2)), "uint8", r"an array of shape \(8, 9, 2\) is no image; store height x width x 3"),
        (np.ones((8, 9, 3)) / 2, "float32", "float.* pixels have no known range; store whole numbers from 0 to 255"),
        (np.full((8, 9, 3), 300), "int32", "pixels from 300 to 300; store whole numbers"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path: Path, cell: Any, kind: str, message: str) -> None:
    path = write(tmp_path / "x.parquet", [cell.tolist()] * 2, datasets.Array3D(cell.shape, kind))
    with pytest.raises(DatasetError, match=message):
        load_dataset(path)


def test_a_bad_array_further_down_names_its_row(tmp_path: Path) -> None:
    cells = [PIXELS[0].tolist(), (PIXELS[1].astype(int) - 300).tolist(), None]
    dataset = load_dataset(write(tmp_path / "x.parquet", cells, LISTS))
    for row, message in {1: "row 1: pixels from -300", 2: "row 2: no image stored"}.items():
        with pytest.raises(DatasetError, match=message):
            dataset.image(row)


@pytest.mark.parametrize("column", ["image", "file_name", "image_path", "path"])
@pytest.mark.parametrize("where", ["beside", "here", "absolute"])
def test_paths_of_files_are_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, where: str) -> None:
    root = tmp_path / "set"
    home = tmp_path if where == "here" else root
    (home / "pics").mkdir(parents=True)
    root.mkdir(exist_ok=True)
    for number in range(3):
        (home / "pics" / f"{number}.png").write_bytes(png((number, 0, 0)))
    monkeypatch.chdir(tmp_path)
    prefix = f"{home}/" if where == "absolute" else ""
    path = write(root / "x.parquet", [f"{prefix}pics/{n}.png" for n in range(3)], datasets.Value("string"), column)
    for name in (path, str(root)) if where == "beside" else (path,):
        dataset = load_dataset(name) if name == path else load_images(path)
        assert [dataset.image(n).getpixel((0, 0))[0] for n in range(3)] == [0, 1, 2]


def test_an_image_feature_of_paths_finds_its_files_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png((7, 0, 0)))
    cells = [{"bytes": None, "path": "0.png"}, {"bytes": png((8, 0, 0)), "path": "1.png"}]
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    dataset = load_dataset(write(tmp_path / "x.parquet", cells, struct))
    assert [dataset.image(n).getpixel((0, 0))[0] for n in range(2)] == [7, 8]


@pytest.mark.parametrize(
    ("cell", "message"),
    [("a/0.png", "is no file here; put the files there"), ("https://x.org/a.png", "is an address; download")],
)
def test_paths_that_lead_nowhere_are_refused(tmp_path: Path, cell: str, message: str) -> None:
    path = write(tmp_path / "x.parquet", [cell, cell], datasets.Value("string"))
    with pytest.raises(DatasetError, match=rf"column 'image' names image files, but '{cell}' in row 0 {message}"):
        load_dataset(path)


def test_images_in_base64_are_no_paths_and_the_message_stays_short(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", ["iVBORw0KGgo" * 1000] * 2, datasets.Value("string"))
    with pytest.raises(DatasetError, match=r"'iVBORw0.*\.\.\.' in row 0 is no file here") as caught:
        load_dataset(path)
    assert len(str(caught.value)) < 500


def test_the_label_column_taken_among_several_is_said(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=CLASSES)
    features = datasets.Features({"img": datasets.Image(), "coarse_label": label, "fine_label": label})
    cells = [{"bytes": png((0, 0, 0)), "path": None}] * 2
    columns = {"img": cells, "coarse_label": [0, 0], "fine_label": [0, 1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    with noticing() as notices:
        load_dataset(str(tmp_path / "x.parquet"))
    assert "labels are those of column 'fine_label', not of coarse_label" in notices[0]["text"]


def test_a_cache_that_cannot_be_written_is_named_and_not_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    make_table([0, 1, 1]).to_parquet(path)
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/nothing")):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        with pytest.raises(DatasetError) as caught:
            load_dataset(str(path))
        assert str(caught.value).startswith(f"{path}: the cache in {cache} cannot be written: ")
        assert str(caught.value).endswith("set HF_DATASETS_CACHE to a folder that can be written")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # the cure
    assert load_dataset(str(path)).labels.tolist() == [0, 1, 1]


ON_A_FULL_DISK = """
import resource, signal, sys
from clipguard.data import load_dataset
from clipguard.core.errors import DatasetError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # no file may grow beyond that, as where there is no space
try:
    load_dataset(sys.argv[1])
except DatasetError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_not_the_data(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    make_table([0, 1, 1]).to_parquet(path)
    env = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "full")}
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(path)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert out.startswith(f"{path}: the cache in {tmp_path / 'full'} cannot be written: "), out
    assert out.endswith("set HF_DATASETS_CACHE to a folder that can be written and has space")
