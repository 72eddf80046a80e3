"""Stratified subsets, conversion to RGB, and templates."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from dataset_files import png

from clipguard.core.errors import DatasetError
from clipguard.data import ZeroShotDataset, load_dataset
from clipguard.data.decoding import decode as decode_image
from clipguard.data.images import EncodedImage, FileImages
from clipguard.data.templates import PHOTO, resolve_templates


def make(counts: list[int]) -> ZeroShotDataset:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [f"class {label}" for label in range(len(counts))]
    return ZeroShotDataset("made", "made", "all", FileImages([""] * len(labels)), names, ["a {}."], labels)


def seats(dataset: ZeroShotDataset, n: int, seed: int) -> list[int]:
    return np.bincount(dataset.labels[dataset.subset(n, seed)], minlength=len(dataset.class_names)).tolist()


def test_subset_is_sorted_distinct_and_repeatable() -> None:
    dataset = make([50, 30, 20])
    for n in (1, 7, 33, 99):
        chosen = dataset.subset(n, 3)
        assert chosen.dtype == np.int64
        assert len(chosen) == n
        assert (np.diff(chosen) > 0).all()
        assert (chosen == dataset.subset(n, 3)).all()
    assert (dataset.subset(33, 3) != dataset.subset(33, 4)).any()


def test_subset_is_proportional() -> None:
    assert seats(make([50, 30, 20]), 10, 0) == [5, 3, 2]
    assert seats(make([60, 41, 0, 1]), 10, 0) == [6, 4, 0, 0]
    assert seats(make([6, 3, 1]), 5, 0) in ([3, 2, 0], [3, 1, 1])  # quotas 3, 1.5, 0.5: a tie, settled by lot
    counts = [47, 16, 158, 81, 15, 16, 99]
    for n in range(1, sum(counts)):
        quota = np.array(counts) * n / sum(counts)
        got = np.array(seats(make(counts), n, 1))
        assert got.sum() == n
        assert (np.abs(got - quota) < 1).all()


def test_ties_are_settled_by_seed_and_not_by_class_order() -> None:
    dataset = make([10] * 8)
    first = {tuple(np.flatnonzero(seats(dataset, 3, seed))) for seed in range(20)}
    assert len(first) > 5


def test_smaller_subsets_are_nested_in_larger_ones() -> None:
    balanced = make([12] * 9)
    chosen = [set(balanced.subset(n, 5).tolist()) for n in range(1, 108)]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    skewed = make([47, 16, 158, 81])  # here a class's seats may shrink as n grows, but what it draws is a prefix
    for label in range(4):
        drawn = [set(s[skewed.labels[s] == label].tolist()) for s in (skewed.subset(n, 5) for n in range(1, 302))]
        assert all(a <= b or b <= a for a, b in itertools.pairwise(drawn))


def test_subset_bounds() -> None:
    dataset = make([3, 4])
    for n in (None, 7, 8, 10**9):
        assert dataset.subset(n, 0).tolist() == list(range(7))
    for n in (0, -1):
        with pytest.raises(DatasetError, match="at least 1 image"):
            dataset.subset(n, 0)


def decode(data: bytes) -> PIL.Image.Image:
    image = decode_image(EncodedImage(data, None)).image
    assert image.mode == "RGB"
    return image


def encode(image: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 255), (0, 0, 0)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("I;16", 128 * 256 + 5, (128, 128, 128)),
    ],
)
def test_modes(mode: str, colour: tuple[int, ...] | int, expected: tuple[int, int, int]) -> None:
    assert decode(png(colour, mode)).getpixel((3, 3)) == expected


def test_palettes() -> None:
    image = PIL.Image.new("RGB", (8, 8), (200, 10, 10)).quantize(4)
    assert decode(encode(image)).getpixel((0, 0)) == (200, 10, 10)
    assert decode(encode(image, transparency=image.getpixel((0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encode(image, "GIF")).getpixel((0, 0)) == (200, 10, 10)


def test_cmyk_and_float() -> None:
    assert decode(encode(PIL.Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG")).getpixel((0, 0)) < (5, 5, 5)
    with pytest.raises(ValueError, match="float pixels"):
        decode(encode(PIL.Image.new("F", (8, 8), 0.5), "TIFF"))


def test_exif_rotation() -> None:
    image = PIL.Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))  # left half white
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left becomes top
    turned = decode(encode(image, exif=exif))
    assert turned.size == (8, 16)
    assert turned.getpixel((4, 2)) == (255, 255, 255)
    assert turned.getpixel((4, 13)) == (0, 0, 0)


def test_templates_of_embedded_and_other_sets() -> None:
    assert load_dataset("emoji-food", templates="single").templates == ["a drawing of a {}."]
    assert load_dataset("emoji-food").templates == [
        "a drawing of a {}.",
        "an emoji of a {}.",
        "a picture of a {}.",
        "a {}.",
    ]
    assert resolve_templates("single", PHOTO) == ["a photo of a {}."]


@pytest.mark.slow
def test_ensemble_is_open_clips() -> None:
    import open_clip

    assert resolve_templates("ensemble", PHOTO) == [fill("{}") for fill in open_clip.SIMPLE_IMAGENET_TEMPLATES]


def test_template_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("\ufeffa {}.\nthe {c}!\n\n", encoding="utf-8")
    assert resolve_templates(str(path), PHOTO) == ["a {}.", "the {}!"]
    assert resolve_templates("a sketch of {}", PHOTO) == ["a sketch of {}"]


@pytest.mark.parametrize("line", ["a photo", "{} and {}", "a {name}", "a {} in {place}", "a {"])
def test_bad_template_lines(tmp_path: Path, line: str) -> None:
    path = tmp_path / "templates.txt"
    path.write_text(f"a {{}}.\n{line}\n")
    with pytest.raises(DatasetError, match=r"emoji-food: .*line 2 must hold one '\{\}'"):
        load_dataset("emoji-food", templates=str(path))


def test_unknown_templates(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Did you mean 'ensemble'"):
        resolve_templates("ensembel", PHOTO)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DatasetError, match="is empty"):
        resolve_templates(str(tmp_path / "empty.txt"), PHOTO)
