"""Names in scripts that the plots' font lacks: text in SVG, an installed font elsewhere, and never silent boxes."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from clipguard.core.records.prediction import Prediction
from clipguard.figures import fonts
from clipguard.figures.fonts import families, lacking
from clipguard.figures.grid import Triple, draw_grid
from clipguard.figures.style import SERIES, Plot, label, new_figure, style
from clipguard.figures.text import Page

CAT, DOG = "\U0001fb03\U0001fb04", "dog <b> & url(#x) #0072b2"  # CAT: legacy graphics, which no common font has
FONT_NAME = "Clipguard Test"


def plot(name: str) -> Plot:
    with style(name):
        figure, axes = new_figure()
        axes.barh([name, DOG], [1, 2], color=SERIES[0])
        label(axes, name, "x", "y")
    return Plot("p", name, "alt", figure, ("class", "n"), [[name, "1"], [DOG, "2"]])


def words(svg: str) -> list[str]:
    return [e.text or "" for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[None]:
    """A font with a square for each character of CAT, as if it were installed."""
    names = [".notdef", "one", "two"]
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): n for c, n in zip(CAT, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": FONT_NAME, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "test.ttf")
    before = list(fontManager.ttflist)
    fontManager.addfont(str(tmp_path / "test.ttf"))
    fonts._cover.cache_clear()
    yield
    fontManager.ttflist[:] = before
    fonts._cover.cache_clear()


def test_latin_names_have_one_font_and_are_shapes() -> None:
    assert families("Tench 5 % ✓ – Ωμέγα") == ["DejaVu Sans"]
    assert lacking("Tench\n\t ✓") == ""
    assert words(plot("Tench")._save("svg").decode()) == []


def test_what_no_font_has_stays_text_in_svg() -> None:
    assert lacking(f"a {CAT} b") == CAT
    drawn = plot(CAT)
    found = words(drawn.files()["p.svg"].decode())
    assert found.count(CAT) == 2  # the title, and an axis
    assert DOG in found
    inline = str(drawn.inline("n1"))
    assert DOG in words(f'<p xmlns:xlink="x">{inline}</p>')  # ids and colours are changed in tags alone
    assert "<b>" not in inline
    assert "var(--s1)" in inline
    assert "sans-serif" in inline


def test_boxes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    grey = np.full((8, 8, 3), 0.5, np.float32)
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        draw_grid([Triple("#0", grey, grey, Prediction(CAT, 0.5, True), Prediction("dog", 0.5, False), None)], "title")
    (message,) = caplog.messages
    assert message.startswith(f"grid.png: no font here has {CAT}, which are drawn as boxes")


@pytest.mark.usefixtures("installed")
def test_an_installed_font_draws_what_ours_lacks(caplog: pytest.LogCaptureFixture) -> None:
    assert families(f"a {CAT}") == ["DejaVu Sans", FONT_NAME]
    assert lacking(CAT) == ""
    files = plot(CAT).files()
    assert words(files["p.svg"].decode()) == []
    grey = np.full((8, 8, 3), 0.5, np.float32)
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        draw_grid([Triple(CAT, grey, grey, Prediction(CAT, 0.5, True), Prediction("dog", 0.5, False), None)], CAT)
    assert "clipguard" not in [record.name for record in caplog.records]
    page = Page(np.full((60, 60, 3), 255, np.uint8))
    page.text(0, 50, CAT[0], 50, color="black")
    drawn = np.asarray(page.image("test").convert("L"))
    assert drawn[20:48, 8:38].max() == 0  # from 0.1 to 0.8 of 50 pixels, above the baseline: filled, and no box
    assert drawn[:10].min() == 255
