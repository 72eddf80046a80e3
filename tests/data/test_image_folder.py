"""Folders of images: which suffixes are read, what is said of the others, and which level is the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from dataset_files import CLASSES, COLOURS, make_table, png, write_images

from clipguard.core.errors import DatasetError, SplitError
from clipguard.core.notices import Notice, noticing
from clipguard.data import load_dataset, load_images


def put(root: Path, *files: str) -> str:
    """Images of one colour a file: red is its place in the list."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(png((number, 0, 0)))
    return str(root)


def load(path: str, **options: object) -> tuple[dict[str, list[int]], str, list[Notice]]:
    """Class name -> reds of its images; the split; notices."""
    with noticing() as notices:
        dataset = load_dataset(path, **options)  # type: ignore[arg-type]
    reds = [dataset.image(row).getpixel((0, 0))[0] for row in range(len(dataset))]
    names = {
        c: [r for r, label in zip(reds, dataset.labels, strict=True) if label == i]
        for i, c in enumerate(dataset.class_names)
    }
    return names, dataset.split, notices


SUFFIXES = (
    ".jfif .jpe .JPG .JPEG .avif .jp2 .j2k .webp .tga .pcx .ico .dib .pnm .pbm .sgi .apng .TIF .mpo .qoi .dds .icns"
)


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_every_raster_format_that_pil_reads_is_read(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path, [0, 1, 1])
    image = PIL.Image.new("RGB", (32, 32), (200, 30, 90)).convert("1" if suffix == ".pbm" else "RGB")
    image.save(tmp_path / CLASSES[1] / f"9{suffix}")
    with noticing() as notices:
        dataset = load_dataset(str(tmp_path))
    assert len(dataset) == 4
    assert not notices
    expected = np.asarray(PIL.Image.open(tmp_path / CLASSES[1] / f"9{suffix}").convert("RGB"))
    row = [r for r in range(4) if str(dataset.images[r].path).endswith(suffix)]
    assert (np.asarray(dataset.image(row[0])) == expected).all()


def test_files_that_are_not_read_are_counted_once(tmp_path: Path) -> None:
    write_images(tmp_path, [0, 1, 1])
    for name in ("a.heic", "b.HEIC", "x.npy", "photo", "film.mp4", "paper.pdf"):
        (tmp_path / CLASSES[0] / name).write_bytes(b"0")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "000.json", "LICENSE"):
        (tmp_path / CLASSES[0] / name).write_bytes(b"0")
    _, _, notices = load(str(tmp_path))
    assert [n["kind"] for n in notices] == ["skipped"]
    assert "files not read: 2 .heic, 1 " in notices[0]["text"]
    for part in ("1 .npy", "1 .mp4", "1 .pdf", "1 without suffix", f"(such as {CLASSES[0]}/"):
        assert part in notices[0]["text"]
    with noticing() as again:
        load_images(str(tmp_path))
    assert again == notices


def test_only_the_chosen_split_s_files_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "train", [0, 1])
    write_images(tmp_path / "test", [0, 1])
    (tmp_path / "train" / CLASSES[0] / "a.heic").write_bytes(b"0")
    assert load(str(tmp_path))[2] == []
    assert "files not read: 1 .heic (such as " in load(str(tmp_path), split="train")[2][0]["text"]


def test_a_class_of_unreadable_files_is_an_error_that_says_which(tmp_path: Path) -> None:
    write_images(tmp_path, [0, 1])
    (tmp_path / "green thing").mkdir()
    for name in ("1.heic", "2.heic"):
        (tmp_path / "green thing" / name).write_bytes(b"0")
    with pytest.raises(DatasetError, match=r"'green thing' holds no images that can be read here \(2 .heic\)"):
        load_dataset(str(tmp_path))
    for folder in CLASSES:
        for file in (tmp_path / folder).iterdir():
            file.rename(file.with_suffix(".heic"))
    with pytest.raises(DatasetError, match=r"image files that can be read here, but 4 .heic; .*convert images"):
        load_dataset(str(tmp_path))


def test_empty_class_folders_are_fine_where_a_file_names_all_classes(tmp_path: Path) -> None:
    path = put(tmp_path / "x", "b/0.png", "c/0.png")
    (tmp_path / "x" / "a").mkdir()
    with pytest.raises(DatasetError, match="class folder 'a' holds no images; fill it, remove it, or name all classes"):
        load_dataset(path)
    (tmp_path / "same.txt").write_text("a\nb\nc")
    assert load(path, classes=tmp_path / "same.txt")[0] == {"a": [], "b": [0], "c": [1]}
    (tmp_path / "other.txt").write_text("ape\nbee\ncat")  # by position, of all folders
    assert load(path, classes=tmp_path / "other.txt")[0] == {"ape": [], "bee": [0], "cat": [1]}


def test_pictures_and_archives_beside_tables_are_said(tmp_path: Path) -> None:
    make_table([0, 1]).to_parquet(tmp_path / "0.parquet")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "teaser.png").write_bytes(png((0, 0, 0)))
    (tmp_path / "1.parquet.gz").write_bytes(b"0")
    assert "files not read: 1 .png, 1 .gz (such as teaser.png)" in str(load(str(tmp_path))[2])


@pytest.mark.parametrize("session", ["s{}", "s{}/day"])
def test_the_first_folder_is_the_class_however_deep_images_lie(tmp_path: Path, session: str) -> None:
    path = put(
        tmp_path,
        f"cat/{session.format(0)}/0.png",
        f"cat/{session.format(1)}/0.png",
        "dog/0.png",
        f"dog/{session.format(0)}/1.png",
    )
    names, split, notices = load(path)
    assert (names, split) == ({"cat": [0, 1], "dog": [2, 3]}, "all")
    assert [n["kind"] for n in notices] == ["guessed"]
    assert "3 of 4 images lie in folders of class folders, such as cat/s0" in notices[0]["text"]
    assert len(load_images(path)) == 4


@pytest.mark.parametrize("splits", ["test train", "val", "Test test2", "val_images train_images", "testing training"])
def test_folders_called_as_splits_are_splits_at_any_depth(tmp_path: Path, splits: str) -> None:
    files = [f"{split}/{rest}" for split in splits.split() for rest in ("cat/0.png", "cat/s1/1.png", "dog/s1/0.png")]
    for number, split in enumerate(splits.split()):
        names, chosen, _ = load(put(tmp_path, *files), split=split)
        assert (names, chosen) == ({"cat": [3 * number, 3 * number + 1], "dog": [3 * number + 2]}, split)
        assert len(load_images(str(tmp_path), split=split)) == 3


def test_images_straight_in_a_split_folder_are_no_class(tmp_path: Path) -> None:
    path = put(tmp_path, "train/0.png", "test/0.png")
    with pytest.raises(DatasetError, match=r"must all lie in class folders, .* but there is test/0.png; move it"):
        load_dataset(path)
    assert len(load_images(path, split="train")) == 1


def test_a_folder_around_the_class_folders_is_named_in_the_cure(tmp_path: Path) -> None:
    path = put(tmp_path, "archive/images/cat/0.png", "archive/images/dog/0.png")
    with pytest.raises(
        DatasetError, match=r"only one class \('archive'\).*if the folders in it are the classes, give "
    ) as caught:
        load_dataset(path)
    assert load(str(caught.value).rpartition("give ")[2])[0] == {"cat": [0], "dog": [1]}
    (tmp_path / "names.txt").write_text("cat\ndog")
    with pytest.raises(DatasetError, match=r"'archive' is not among .*; if the folders in it are the classes, give "):
        load_dataset(path, classes=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("dog\narchive")  # it is the class
    assert load(path, classes=tmp_path / "names.txt")[0] == {"dog": [], "archive": [0, 1]}


def test_a_split_beside_other_folders_is_not_taken_for_a_class(tmp_path: Path) -> None:
    path = put(tmp_path, "train/cat/0.png", "train/dog/0.png", "extra/cat/0.png", "extra/dog/0.png")
    with pytest.raises(SplitError, match=r"holds 'train', which is a split, beside extra; choose a split with `split`"):
        load_dataset(path)
    assert load(path, split="train")[0] == {"cat": [0], "dog": [1]}
    assert load(path, split="extra")[0] == {"cat": [2], "dog": [3]}
    names, split, notices = load(
        put(
            tmp_path,
            "train/cat/0.png",
            "train/dog/0.png",
            "extra/cat/0.png",
            "extra/dog/0.png",
            "test/dog/0.png",
            "test/cat/0.png",
        )
    )
    assert (names, split) == ({"cat": [5], "dog": [4]}, "test")
    assert "so extra is one, too" in notices[0]["text"]


def test_classes_that_only_another_split_has_are_said(tmp_path: Path) -> None:
    path = put(tmp_path, "train/cat/0.png", "train/dog/0.png", "train/emu/0.png", "val/cat/0.png", "val/dog/0.png")
    names, _, notices = load(path)
    assert set(names) == {"cat", "dog"}
    assert "classes left out, for only other splits have them: 1 (emu); --classes FILE names all" in notices[0]["text"]
    (tmp_path / "names.txt").write_text("cat\ndog\nemu")
    assert set(load(path, classes=tmp_path / "names.txt")[0]) == {"cat", "dog", "emu"}


def test_a_link_to_a_folder_above_does_not_multiply_images(tmp_path: Path) -> None:
    path = put(tmp_path / "x", "cat/0.png", "dog/0.png")
    (tmp_path / "x" / "cat" / "again").symlink_to(tmp_path / "x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(png(COLOURS[0]))
    (tmp_path / "x" / "emu").symlink_to(tmp_path / "elsewhere")
    assert {name: len(reds) for name, reds in load(path)[0].items()} == {"cat": 1, "dog": 1, "emu": 1}


def test_a_copy_of_a_registered_set_takes_the_same_paths(tmp_path: Path) -> None:
    put(tmp_path / "tiny-imagenet" / "train", "n01440764/images/0.png", "n02113186/images/0.png")
    (tmp_path / "tiny-imagenet" / "train" / "n01440764" / "1.heic").write_bytes(b"0")
    with noticing() as notices:
        dataset = load_dataset("tiny-imagenet", data_root=tmp_path)
    assert dataset.class_names == ["tench", "Cardigan Welsh Corgi"]
    assert {n["kind"] for n in notices} == {"guessed", "skipped", "translated"}
