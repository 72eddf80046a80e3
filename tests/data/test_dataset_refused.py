"""Every broken or misleading input is refused with one line that names the cure."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from dataset_files import COLOURS, make_table, png, samples, write_clip_benchmark, write_images, write_tar

from clipguard.core.errors import DatasetError
from clipguard.data import load_dataset


def refuse(name: object, message: str, **options: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(str(name), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{name}: ")


def test_unknown_names(tmp_path: Path) -> None:
    refuse("emoji-animal", r"Did you mean 'emoji-animals'.*Embedded: emoji-animals, emoji-food")
    refuse("ylecun/mnist", "write hf:ylecun/mnist")
    refuse("", "not a known dataset")
    refuse("x" * 5000, "not a known dataset")
    refuse("~nobody-of-that-name/x", "no such file or folder")
    refuse(tmp_path / "absent", "no such file or folder")
    refuse("absent.parquet", "no such file or folder")
    refuse("emoji-food", "no split 'validation'.*Splits: test, train", split="validation")


def test_garbage(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds no parquet, arrow, tar or image files")
    (tmp_path / "notes.csv").write_text("a,b")
    refuse(tmp_path / "notes.csv", "no format clipguard reads; give a .parquet")
    (tmp_path / "one.png").write_bytes(png(COLOURS[0]))
    refuse(tmp_path / "one.png", "a single image; give the folder")
    write_tar(tmp_path / "mix" / "x.tar", samples([0]))
    make_table([0, 1]).to_parquet(tmp_path / "mix" / "x.parquet")
    refuse(tmp_path / "mix", "a mix of parquet and tar files; give the file or subfolder")


def test_some_files_without_split(tmp_path: Path) -> None:
    for file in ("test.parquet", "more.parquet"):
        make_table([0, 1]).to_parquet(tmp_path / file)
    refuse(tmp_path, r"more.parquet has no split")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".tar"])
@pytest.mark.parametrize("content", [b"", b"not what the name says" * 100])
def test_files_of_another_format(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refuse(path, "cannot read .*corrupt")


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    make_table([0, 1] * 20).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    refuse(path, "cannot read .*corrupt")


def test_empty_table(tmp_path: Path) -> None:
    make_table([]).to_parquet(tmp_path / "x.parquet")
    refuse(tmp_path / "x.parquet", "the data set is empty")


def test_shards_with_different_columns(tmp_path: Path) -> None:
    make_table([0, 1]).to_parquet(tmp_path / "0.parquet")
    make_table([0, 1]).rename_column("label", "other").to_parquet(tmp_path / "1.parquet")
    refuse(tmp_path, "cannot read")


def test_broken_save_to_disk(tmp_path: Path) -> None:
    make_table([0, 1]).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    refuse(tmp_path / "saved", "cannot read .*saved")


@pytest.mark.parametrize("cut", ["inside a member", "header"])
def test_damaged_tar(tmp_path: Path, cut: str) -> None:
    path = write_tar(tmp_path / "x.tar", samples([0, 1, 0, 1]))
    content = bytearray(path.read_bytes())
    if cut == "header":
        content[4096:4104] = b"\xff" * 8  # the third sample's header: tarfile alone would take it for the end
    path.write_bytes(content if cut == "header" else content[: 2048 + 700])
    (tmp_path / "classnames.txt").write_text("a\nb")
    refuse(path, "cannot read .*corrupt, cut short or compressed")


def test_compressed_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", samples([0, 1]))
    path.write_bytes(gzip.compress(path.read_bytes()))
    refuse(path, "compressed")
    path.rename(tmp_path / "x.tar.gz")
    refuse(tmp_path / "x.tar.gz", "must be unpacked first")


def test_tar_contents(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("a\nb")
    refuse(write_tar(tmp_path / "none.tar", [("x.txt", b"hello")]), "the data set is empty")
    refuse(write_tar(tmp_path / "nocls.tar", [*samples([0, 1])[:-2], ("s9.png", b"x")]), "row 1 has no label")
    refuse(write_tar(tmp_path / "two.tar", [*samples([0]), ("s0000000.jpg", b"x")]), "has several images")
    refuse(tmp_path / "nocls.tar", "a webdataset has no columns", label_column="cls")
    (tmp_path / "classnames.txt").unlink()
    refuse(write_tar(tmp_path / "nonames.tar", samples([0, 1])), "give `classes=FILE`")


def test_missing_shard(tmp_path: Path) -> None:
    root = write_clip_benchmark(tmp_path)
    (root / "test" / "1.tar").unlink()
    refuse(root, "says 2 shards, but there are 1")
    (root / "test" / "nshards.txt").write_text("many")
    refuse(root, "says many shards")


def test_bad_image_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "a", [0, 1])
    (tmp_path / "a" / "empty class").mkdir()
    refuse(tmp_path / "a", "class folder 'empty class' holds no images")
    write_images(tmp_path / "b", [0, 0])
    refuse(tmp_path / "b", "only one class")
    refuse(tmp_path / "b", "an image folder has no columns", image_column="image")
    (tmp_path / "b" / "stray.png").write_bytes(png(COLOURS[0]))
    refuse(tmp_path / "b", "but there is stray.png; move it")


def test_corrupt_images_name_their_row(tmp_path: Path) -> None:
    write_images(tmp_path, [0, 1, 1])
    bad = tmp_path / "blue thing" / "001.png"
    for content in (b"", b"no image", png(COLOURS[0], size=(64, 64))[:60]):
        bad.write_bytes(content)
        dataset = load_dataset(str(tmp_path))
        with pytest.raises(DatasetError, match=r"cannot decode the image in row 0 \(.*blue thing/001.png\)") as caught:
            dataset.image(0)
        assert "BytesIO" not in str(caught.value)
        assert dataset.image(1).getpixel((0, 0)) == COLOURS[1]
    bad.unlink()
    with pytest.raises(DatasetError, match=r"row 0 \(.*001.png\)"):
        dataset.image(0)


def test_corrupt_images_in_tables_and_tars(tmp_path: Path) -> None:
    table = make_table([0, 1, 0])
    cells = [{"bytes": png(COLOURS[0]), "path": None}, {"bytes": b"no image", "path": None}, None]
    broken = table.from_dict({"image": cells, "label": [0, 1, 0]}, features=table.features)
    broken.to_parquet(tmp_path / "x.parquet")
    dataset = load_dataset(str(tmp_path / "x.parquet"))
    for row, reason in {1: "not in an image format", 2: "no image stored"}.items():
        with pytest.raises(DatasetError, match=rf"row {row}: {reason}"):
            dataset.image(row)
    write_tar(tmp_path / "x.tar", [("a.png", b"no image"), ("a.cls", b"0"), *samples([1])])
    (tmp_path / "classnames.txt").write_text("a\nb")
    with pytest.raises(DatasetError, match=r"row 0 \(.*x.tar:a.png\)"):
        load_dataset(str(tmp_path / "x.tar")).image(0)


def test_index_out_of_range() -> None:
    dataset = load_dataset("emoji-food")
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset.image(index)
