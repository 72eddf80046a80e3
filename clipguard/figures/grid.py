"""A picture of adversarial images: clean, perturbation, adversarial, with what the model says of them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipguard.core.records.prediction import Prediction
from clipguard.figures.text import Page, Ruler

Pixels = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
MOST = 64  # triples in one picture
ASPECT = 1.4  # width over height that the picture comes near to
SLOTS = ((1, 336), (4, 240), (30, 192), (MOST, 144))  # up to so many triples: pixels of an image's longer edge
NARROWEST = 112  # pixels of a panel, so that there is room for words
MARGIN, GUTTER, PADDING, GAP = 24, 16, 14, 8  # of the page, between cards, inside a card, between panels
INK, FAINT, RIGHT, WRONG, UNTOUCHED = "#1f2328", "#59636e", "#116329", "#b3261e", "#7d4e00"
WHITE, CARD, FRAME = 255, np.array([246, 248, 250], np.uint8), np.array([200, 206, 212], np.uint8)
LABEL_BOX = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}


@dataclass(frozen=True)
class Triple:
    """One image before and after, (H, W, 3) in [0,1], what it is, and what the model says of it.

    `broken_by` is the attack that broke it, "clean" if it was wrong before, or None if it is robust.
    """

    title: str
    clean: Pixels
    x_adv: Pixels
    before: Prediction
    after: Prediction
    broken_by: str | None


def draw_grid(triples: Sequence[Triple], title: str) -> bytes:
    """A PNG file with a card for each of the first `MOST` triples; the same input gives the same file."""
    return _Grid(list(triples[:MOST]), title).png()


def amplification(largest: float) -> float:
    """The factor that lets a perturbation of at most `largest` fill [0,1] around grey: whole, or one decimal."""
    if largest <= 0:
        return 1.0
    factor = 0.5 / largest
    return float(math.floor(factor)) if factor >= 10 else max(math.floor(10 * factor) / 10, 0.1)


class _Grid:
    """Measures first, then paints pixels, then writes words over them."""

    def __init__(self, triples: list[Triple], title: str) -> None:
        self.triples, self.ruler = triples, Ruler()
        edge = next(pixels for n, pixels in SLOTS if len(triples) <= n)
        self.font = 16 if edge > 200 else 14 if edge > 150 else 13
        self.line = round(1.45 * self.font)
        self.panels = [[fit_image(p, edge, smooth) for p, smooth in _pictures(t)] for t in triples]
        self.slot_height = max(panel.shape[0] for row in self.panels for panel in row)
        self.slot_width = max(NARROWEST, *(panel.shape[1] for row in self.panels for panel in row))
        self.names = [[self._wrap(c) for c in (t.before, t.after)] for t in triples]
        self.name_lines = max(len(name) for pair in self.names for name in pair)
        self.inner = 3 * self.slot_width + 2 * GAP
        self.card = (
            self.inner + 2 * PADDING,
            2 * PADDING + round(1.7 * self.line) + self.slot_height + (self.name_lines + 1) * self.line,
        )
        self.columns = choose_columns(len(triples), self.card[0] + GUTTER, self.card[1] + GUTTER)
        self.width = 2 * MARGIN - GUTTER + self.columns * (self.card[0] + GUTTER)
        self.title = self.ruler.wrap(title, self.width - 2 * MARGIN, self.font + 2, lines=2, bold=True)

    def _wrap(self, prediction: Prediction) -> list[str]:
        mark = "✓" if prediction.right else "✗"
        return self.ruler.wrap(f"{mark} {prediction.name}", self.slot_width, self.font, lines=2, bold=True)

    def png(self) -> bytes:
        page = self._paint()
        self._head(page)
        for number, triple in enumerate(self.triples):
            self._words(page, number, triple)
        content = io.BytesIO()
        page.image("grid.png").save(content, "PNG")
        return content.getvalue()

    @property
    def _top(self) -> int:
        return MARGIN + (2 + len(self.title)) * self.line

    def _corner(self, number: int) -> tuple[int, int]:
        """Upper left corner of a card."""
        row, column = divmod(number, self.columns)
        return MARGIN + column * (self.card[0] + GUTTER), self._top + row * (self.card[1] + GUTTER)

    def _panel_corner(self, number: int, panel: int) -> tuple[int, int]:
        x, y = self._corner(number)
        return x + PADDING + panel * (self.slot_width + GAP), y + PADDING + round(1.7 * self.line)

    def _paint(self) -> Page:
        """Cards and images."""
        rows = math.ceil(len(self.triples) / self.columns)
        height = self._top + MARGIN - GUTTER + rows * (self.card[1] + GUTTER)
        paper: Bytes = np.full((height, self.width, 3), WHITE, np.uint8)
        for number, panels in enumerate(self.panels):
            x, y = self._corner(number)
            paper[y : y + self.card[1], x : x + self.card[0]] = CARD
            for column, panel in enumerate(panels):
                left, top = self._panel_corner(number, column)
                h, w = panel.shape[:2]
                left, top = left + (self.slot_width - w) // 2, top + (self.slot_height - h) // 2
                paper[top - 1 : top + h + 1, left - 1 : left + w + 1] = FRAME
                paper[top : top + h, left : left + w] = panel
        return Page(paper)

    def _head(self, page: Page) -> None:
        size, y = self.font + 2, MARGIN + self.font + 2.0
        for text in self.title:
            page.text(MARGIN, y, text, size, color=INK, bold=True)
            y += 1.15 * self.line
        legend = "clean  |  perturbation, amplified by the factor on it (grey: no change)  |  adversarial"
        legend = self.ruler.fit(legend, self.width - 2 * MARGIN, self.font)
        page.text(MARGIN, y + 0.1 * self.line, legend, self.font, color=FAINT)

    def _words(self, page: Page, number: int, triple: Triple) -> None:
        x, y = self._corner(number)
        x, baseline = x + PADDING, y + PADDING + self.font
        verdict, color = _verdict(triple.broken_by)
        verdict = self.ruler.fit(verdict, 0.6 * self.inner, self.font)
        page.text(x + self.inner, baseline, verdict, self.font, color=color, align="right")
        room = self.inner - self.ruler.width(verdict, self.font) - 2 * self.font
        page.text(
            x, baseline, self.ruler.fit(triple.title, room, self.font, bold=True), self.font, color=INK, bold=True
        )
        for panel, prediction, name in ((0, triple.before, 0), (2, triple.after, 1)):
            color = RIGHT if prediction.right else WRONG
            self._caption(page, number, panel, self.names[number][name], f"{100 * prediction.confidence:.1f} %", color)
        largest = float(np.abs(triple.x_adv - triple.clean).max())
        size = f"at most {255 * largest:.3g}/255" if largest else "none"
        self._caption(page, number, 1, ["perturbation"], size, FAINT, bold=False)
        if largest:
            left, top = self._panel_corner(number, 1)
            height, width = self.panels[number][1].shape[:2]
            left, bottom = left + (self.slot_width - width) // 2, top + (self.slot_height + height) // 2
            factor = f"×{amplification(largest):g}"
            page.text(left + 8, bottom - 9, factor, self.font, color=INK, bold=True, box=LABEL_BOX)

    def _caption(
        self, page: Page, number: int, panel: int, name: list[str], below: str, color: str, bold: bool = True
    ) -> None:
        left, top = self._panel_corner(number, panel)
        x, y = left + self.slot_width / 2, top + self.slot_height + self.line
        for text in name:
            page.text(x, y, text, self.font, color=color, bold=bold, align="center")
            y += self.line
        page.text(x, y, below, self.font, color=FAINT, align="center")


def choose_columns(n: int, width: int, height: int) -> int:
    """How many cards of this size go side by side: near `ASPECT`, and no lonely one in the last row."""

    def cost(columns: int) -> float:
        rows = math.ceil(n / columns)
        empty = rows * columns - n
        return abs(math.log(columns * width / (rows * height) / ASPECT)) + 0.5 * empty / columns

    return min(range(1, n + 1), key=cost)


def fit_image(pixels: Pixels, edge: int, smooth: bool) -> Bytes:
    """An image (H, W, 3) in [0,1] at most `edge` pixels long: whole-number nearest upscaling, or reduced.

    Reduced smoothly, or by leaving pixels out: averaging would wash a perturbation's noise out.
    """
    image: Bytes = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    height, width = image.shape[:2]
    factor = edge // max(height, width)
    if factor >= 1:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    scale = edge / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize(size, method))


def _pictures(triple: Triple) -> list[tuple[Pixels, bool]]:
    """The three images, and whether they may be smoothed."""
    delta = triple.x_adv - triple.clean
    shown = 0.5 + amplification(float(np.abs(delta).max())) * delta
    return [(triple.clean, True), (shown, False), (triple.x_adv, True)]


def _verdict(broken_by: str | None) -> tuple[str, str]:
    if broken_by is None:
        return "✓ robust", RIGHT
    if broken_by == "clean":
        return "✗ wrong when clean, not attacked", UNTOUCHED
    return f"✗ broken by {broken_by}", WRONG
