"""Text at pixel positions on a matplotlib figure, measured before it is drawn so that nothing overlaps."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from clipguard.figures.fonts import families, warn_of_boxes

DPI = 128  # a power of two: sizes in inches are exact


class Page:
    """A figure of a size in pixels; positions count from its upper left corner.

    Only figure objects are used, never pyplot, and no setting of the user's matplotlibrc can change the result.
    """

    def __init__(self, background: npt.NDArray[np.uint8]) -> None:
        """`background`: (H, W, 3), what is under the text."""
        self.height, self.width = background.shape[:2]
        self._background = background
        self._figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="none")
        self._canvas = FigureCanvasAgg(self._figure)
        self._texts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        color: str,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
        box: dict[str, Any] | None = None,
    ) -> None:
        """Write one line with its baseline at `y`, `size` pixels high."""
        self._texts.append(text)
        self._figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontproperties=font(text, size, bold),
            color=color,
            ha=align,
            va="baseline",
            parse_math=False,
            usetex=False,
            bbox=box,
        )

    def image(self, name: str) -> Image.Image:
        """The finished page, in RGB; the log says under this name which characters no font has."""
        warn_of_boxes(name, self._texts)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # told above
            self._canvas.draw()  # type: ignore[no-untyped-call]
        words = Image.fromarray(np.asarray(self._canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
        return Image.alpha_composite(Image.fromarray(self._background).convert("RGBA"), words).convert("RGB")


def font(text: str, size: float, bold: bool) -> FontProperties:
    """The fonts of a text at `size` pixels."""
    return FontProperties(family=families(text), size=size * 72 / DPI, weight="bold" if bold else "normal")


class Ruler:
    """Measures, shortens and wraps lines of text."""

    def __init__(self) -> None:
        self._renderer = FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()  # type: ignore[no-untyped-call]

    def width(self, text: str, size: float, bold: bool = False) -> float:
        """Pixels that a line takes."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            width, _, _ = self._renderer.get_text_width_height_descent(text, font(text, size, bold), False)
        return float(width)

    def fit(self, text: str, room: float, size: float, bold: bool = False) -> str:
        """The text, cut to `room` pixels with an ellipsis if need be."""
        text = " ".join(text.split())
        if self.width(text, size, bold) <= room:
            return text
        short = text
        while short and self.width(short + "…", size, bold) > room:
            short = short[:-1]
        return short.rstrip() + "…"

    def wrap(self, text: str, room: float, size: float, lines: int, bold: bool = False) -> list[str]:
        """The text on at most `lines` lines, broken between words; what is left over is cut."""
        words = text.split()
        out: list[str] = []
        while words and len(out) < lines - 1:
            n = len(words)
            while n > 1 and self.width(" ".join(words[:n]), size, bold) > room:
                n -= 1
            out.append(self.fit(" ".join(words[:n]), room, size, bold))
            words = words[n:]
        return [*out, self.fit(" ".join(words), room, size, bold)] if words else out
