"""Web datasets: samples by name, dots in names, and nothing dropped without a word."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import PIL.Image
import pytest
from dataset_files import png, samples, write_tar

from clipguard.core.errors import DatasetError
from clipguard.core.notices import Notice, noticing
from clipguard.data import load_dataset, load_images


def members(*names: str) -> list[tuple[str, bytes]]:
    """Contents by suffix: an image whose red is the first number in its name, or a label, that number."""
    made = []
    for name in names:
        number = int("".join(c for c in name.rpartition("/")[2].partition(".")[0] if c.isdigit()) or 0)
        is_label = name.lower().endswith((".cls", ".txt", ".json"))
        made.append((name, f"thing {number}".encode() if is_label else png((number, 0, 0))))
    return made


def load(path: Path, **options: object) -> tuple[list[tuple[int, str]], list[Notice]]:
    """(red, class name) of each row, and the notices."""
    with noticing() as notices:
        dataset = load_dataset(str(path), **options)  # type: ignore[arg-type]
    rows = range(len(dataset))
    return [(dataset.image(r).getpixel((0, 0))[0], dataset.class_names[dataset.labels[r]]) for r in rows], notices


def right(*numbers: int) -> list[tuple[int, str]]:
    return [(number, f"thing {number}") for number in numbers]


@pytest.mark.parametrize(
    ("names", "numbers", "said"),
    [
        (
            ["7.png", "7.cls", "img_8.v1.5.png", "img_8.v1.5.cls"],
            (7, 8),
            "dots in names such as img_8.v1.5.png",
        ),
        (["a/7.x.png", "a/7.x.CLS", "b.c/8.PNG", "b.c/8.cls"], (7, 8), "dots in names"),
        (["7.cls", "7.png", "8.png", "8.cls", "7.seg.png", "8.seg.png"], (7, 8), "are not read: 2 .seg.png"),
        (
            ["7.jpg.png", "7.cls", "8.jpg.png", "8.cls"],
            (7, 8),
            "2 images are taken for their sample's",
        ),
        (["7.png", "7.cls", "8.cls", "8.png", "7.json", "7.txt", "8.json"], (7, 8), "are not read: 2 .json, 1 .txt"),
        (["7.jfif", "7.cls", "8.JPE", "8.cls"], (7, 8), ""),
        (["dir/7.png", "dir/7.cls", "8.png", "8.cls"], (7, 8), ""),
        (["7.png", "7.class.cls", "8.png", "8.class.cls"], (7, 8), ""),
    ],
)
def test_samples_by_name(tmp_path: Path, names: list[str], numbers: tuple[int, ...], said: str) -> None:
    rows, notices = load(write_tar(tmp_path / "x.tar", members(*names)))
    assert sorted(rows) == right(*numbers)
    assert len(notices) == bool(said)
    assert said in str(notices)


def test_images_of_every_dotted_sample_are_kept_where_one_name_is_the_other_s_start(tmp_path: Path) -> None:
    pairs = [
        (f"7{middle}.{kind}", data)
        for middle, n in (("", 1), (".v2", 2), (".v3", 3))
        for kind, data in (("png", png((n, 0, 0))), ("cls", f"thing {n}".encode()))
    ]
    rows, notices = load(write_tar(tmp_path / "x.tar", pairs))
    assert rows == right(1, 2, 3)
    assert notices[0]["kind"] == "guessed"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["7.png", "7.cls", "8.cls", "9.cls"],
            r"x.tar: 8.cls is the label of no image .* \(2 of 3 labels\); add",
        ),
        (["7.png", "7.cls", "8.cls", "8.heic"], r"8.cls is the label of no image .*beside them, 1 .heic"),
        (["7.v1.png", "7.v1.cls", "8.v1.cls", "9.png", "9.cls"], "8.v1.cls is the label of no image"),
        (["7.png", "7.cls", "8.png"], r"row 1 has no label \(1 of 2"),
        (["7.left.png", "7.right.png", "7.cls"], r"several images \(7.left.png, 7.right.png\)"),
        (["7.png", "7.jpg", "7.cls"], "several images"),
        (["7.png", "7.png", "7.cls", "8.png", "8.cls"], r"several images \(7.png, 7.png\)"),
        (["7.png", "8.png", "7.json", "8.json"], r"no image has a .cls member; beside them, 2 .json; store the class"),
        (["7.png", "8.png", "7.txt", "8.txt"], "no image has a .cls member; beside them, 2 .txt; store the class"),
        (
            ["7.heic", "7.cls"],
            r"7.cls is the label of no image .*\(1 of 1 labels; beside them, 1 .heic\); add the images",
        ),
        (["7.heic", "8.heic"], "the data set is empty: no image that can be read here, but 2 .heic"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(write_tar(tmp_path / "x.tar", members(*names))))


def test_the_cure_for_labels_in_other_members_works(tmp_path: Path) -> None:
    renamed = [(name.replace(".txt", ".cls"), data) for name, data in members("7.png", "7.txt", "8.png", "8.txt")]
    assert load(write_tar(tmp_path / "x.tar", renamed))[0] == right(7, 8)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["3.0", "1.0"], [3, 1]), (["3\n", " 1"], [3, 1]), (["d\n", "b"], [3, 1]), (["\ufeff3", "1"], [3, 1])],
)
def test_labels_as_tools_write_them(tmp_path: Path, labels: list[str], expected: list[int]) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\nd")
    content = [m for i, text in enumerate(labels) for m in [(f"{i}.cls", text.encode()), (f"{i}.png", png((i, 0, 0)))]]
    dataset = load_dataset(str(write_tar(tmp_path / "x.tar", content)), classes=tmp_path / "names.txt")
    assert dataset.labels.tolist() == expected


@pytest.mark.parametrize("content", [b'{"label": 3}', b"[3]", b"\x80\x03K\x03.", b"\x03\x00", b"tench\ngoldfish"])
def test_labels_that_are_no_number_or_name_are_refused(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", [*samples([0, 1]), ("9.cls", content), ("9.png", png((0, 0, 0)))])
    with pytest.raises(DatasetError, match=r"x.tar: 9.cls holds b.*; write only the class number or name") as caught:
        load_dataset(str(path))
    assert "\n" not in str(caught.value)


def test_two_labels_of_a_sample_must_agree(tmp_path: Path) -> None:
    same = [*members("7.png", "7.cls", "7.cls", "8.png", "8.cls")]
    assert load(write_tar(tmp_path / "x.tar", same))[0] == right(7, 8)
    with pytest.raises(DatasetError, match=r"sample '7' has several labels \(7.cls, 7.cls, 7.cls\); keep one"):
        load_dataset(str(write_tar(tmp_path / "y.tar", [*same, ("7.cls", b"other")])))


def test_the_same_key_in_two_shards_is_two_samples(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / "x" / f"{shard}.tar", members("7.png", "7.cls", f"{shard}.png", f"{shard}.cls"))
    assert load(tmp_path / "x")[0] == right(7, 0, 7, 1)


def test_folders_and_links_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in members("a/7.png", "a/7.cls", "a/8.png", "a/8.cls"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        folder, link = tarfile.TarInfo("a.png"), tarfile.TarInfo("a/9.png")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.LNKTYPE, "a/7.png"
        tar.addfile(folder)
        tar.addfile(link)
    rows, notices = load(tmp_path / "x.tar")
    assert rows == right(7, 8)
    assert "are not read: 1 links" in notices[0]["text"]


def test_images_without_labels_need_no_cls(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", members("7.png", "7.txt", "8.v1.png", "8.v2.png", "9.png", "9.cls"))
    with pytest.raises(DatasetError, match="several images"):
        load_images(str(tmp_path / "x.tar"))
    write_tar(tmp_path / "x.tar", members("7.png", "7.txt", "8.v1.png", "8.v2.png"))
    with noticing() as notices:
        assert len(load_images(str(tmp_path / "x.tar"))) == 3
    assert {n["kind"] for n in notices} == {"guessed", "skipped"}


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    data = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((9, 7)).convert("RGB").save(data, "JPEG2000")
    write_tar(tmp_path / "x.tar", [("a.b.jp2", data.getvalue()), ("a.b.cls", b"x"), *members("8.png", "8.cls")])
    image = load_dataset(str(tmp_path / "x.tar")).image(0)
    assert image.tobytes() == PIL.Image.open(data).convert("RGB").tobytes()
