"""The picture of adversarial images, from made-up ones."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from PIL import Image

from clipguard.core.records.prediction import Prediction
from clipguard.figures import grid
from clipguard.figures.grid import Triple, amplification, choose_columns, draw_grid, fit_image
from clipguard.figures.text import Ruler

LONG = "a class name that goes on $ and on $ much longer than any panel is wide, 日本語 included"


def triple(number: int, size: tuple[int, int] = (48, 48), name: str = "cat") -> Triple:
    """A noisy image; every third is broken, every third robust, every third wrong from the start."""
    rng = np.random.default_rng(number)
    clean = rng.random((*size, 3), dtype=np.float32)
    by = ("apgd-ce", None, "clean")[number % 3]
    noise = 4 / 255 * rng.choice([-1, 1], clean.shape).astype(np.float32)
    x_adv = clean if by == "clean" else (clean + noise).clip(0, 1)
    before = Prediction(name, 0.91, by != "clean")
    after = Prediction("dog", 0.5, True) if by is None else Prediction("dog", 0.5, False)
    return Triple(f"#{number}  {name}", clean, x_adv, before, after, by)


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_every_size_fills_a_sensible_page_and_is_repeatable(n: int) -> None:
    triples = [triple(i) for i in range(n)]
    png = draw_grid(triples, "a title")
    page = pixels(png)
    height, width = page.shape[:2]
    assert 500 <= width <= 4200
    assert 400 <= height <= 4200
    assert 0.7 <= width / height <= 2.3
    assert page.reshape(-1, 3).std(axis=0).min() > 20
    blocks = page[: height // 8 * 8, : width // 8 * 8].reshape(height // 8, 8, width // 8, 8, 3)
    assert (blocks.std(axis=(1, 3)) > 2).mean() > 0.4  # mostly pictures, not paper
    assert draw_grid(triples, "a title") == png


def test_images_are_magnified_without_smoothing_and_exactly() -> None:
    one = triple(0)
    page = pixels(draw_grid([one], "a title"))
    shown = np.rint(one.clean * 255).astype(np.uint8).repeat(7, axis=0).repeat(7, axis=1)
    corner = np.flatnonzero((page[:, :, :] == shown[0, 0]).all(axis=2).ravel())
    places = ((i // page.shape[1], i % page.shape[1]) for i in corner)
    assert any(np.array_equal(page[y : y + 336, x : x + 336], shown) for y, x in places)


def test_more_than_fit_shows_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MOST", 4)
    triples = [triple(i, (8, 8)) for i in range(6)]
    assert draw_grid(triples, "t") == draw_grid(triples[:4], "t") != draw_grid(triples[:3], "t")


def test_odd_shapes_long_names_and_other_scripts(caplog: pytest.LogCaptureFixture, recwarn: object) -> None:
    shapes = [(48, 48), (900, 300), (20, 700), (1, 1), (224, 224)]
    with caplog.at_level(logging.WARNING):
        page = pixels(draw_grid([triple(i, s, LONG) for i, s in enumerate(shapes)], LONG))
    assert page.std() > 20
    assert [record.name for record in caplog.records if "drawn as boxes" not in record.message] == []
    assert not list(recwarn)  # type: ignore[call-overload]


def test_marks_tell_right_from_wrong_without_colour() -> None:
    right, wrong = (
        draw_grid([Triple("t", x, x, Prediction("cat", 0.5, good), Prediction("cat", 0.5, good), None)], "t")
        for x in [np.full((8, 8, 3), 0.5, np.float32)]
        for good in (True, False)
    )
    dark = [(pixels(png).max(axis=2) < 200).sum() for png in (right, wrong)]
    assert dark[0] != dark[1]


@pytest.mark.parametrize(("largest", "factor"), [(4 / 255, 31), (8 / 255, 15), (0.1, 5), (0.3, 1.6), (1, 0.5), (0, 1)])
def test_the_largest_perturbation_fills_the_range_and_is_never_cut(largest: float, factor: float) -> None:
    assert amplification(largest) == factor
    assert factor * largest <= 0.5


def test_large_images_are_reduced_and_small_ones_repeated() -> None:
    noise = np.random.default_rng(0).random((400, 200, 3), dtype=np.float32)
    for smooth in (True, False):
        assert fit_image(noise, 100, smooth).shape == (100, 50, 3)
    assert fit_image(noise, 100, smooth=False).std() > 2 * fit_image(noise, 100, smooth=True).std()
    assert fit_image(noise[:48, :48], 144, smooth=True).shape == (144, 144, 3)
    assert fit_image(noise[:1], 144, smooth=True).shape == (1, 144, 3)


def test_columns() -> None:
    assert [choose_columns(n, 480, 270) for n in (1, 2, 12, 64)] == [1, 1, 3, 8]


def test_words_stay_within_their_room() -> None:
    ruler = Ruler()
    for text in (LONG, "Donaudampfschifffahrtsgesellschaftskapitän", "short", "two words"):
        lines = ruler.wrap(text, 144, 13, lines=2, bold=True)
        assert 1 <= len(lines) <= 2
        assert all(ruler.width(line, 13, bold=True) <= 144 for line in lines)
    assert ruler.wrap("two words", 144, 13, lines=2) == ["two words"]
    assert ruler.fit("short", 144, 13) == "short"
    assert ruler.fit(LONG, 144, 13).endswith("…")
