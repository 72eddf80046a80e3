"""How plots look, and the files and inline SVG that they become."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from clipguard.figures.fonts import FONT, families, is_wide, lacking
from clipguard.figures.text import DPI, Ruler

# Each colour stands for one CSS variable of the page, so that an inline plot follows its light or dark scheme.
INK, FAINT, LINE, PAPER = "#1b1f24", "#57606a", "#d5dae0", "#fefefe"
# Okabe & Ito's palette for all kinds of colour vision, without its yellow and black (faint on white, and the ink).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a66f00", "#56b4e9", "#7a5195", "#6b7280")
CSS_NAMES = {INK: "ink", FAINT: "faint", LINE: "line", PAPER: "paper"} | {c: f"s{i}" for i, c in enumerate(SERIES, 1)}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # so that colour is never the only difference
PNG_DPI = 300
PIXELS_PER_POINT = 1.3  # in the page
SETTINGS = {
    "svg.fonttype": "path",  # the same on every machine, whatever fonts it has; but see `_save`
    "svg.hashsalt": "clipguard",  # the same ids in every run
    "pdf.fonttype": 42,
    "font.size": 9.5,
}


def style(words: str = "") -> AbstractContextManager[None]:
    """Where figures are made and saved: these settings, fonts for `words`, and nothing of the user's matplotlibrc."""
    settings = SETTINGS | {"font.family": families(words)}
    context: AbstractContextManager[None] = matplotlib.style.context(["default", settings])
    return context


@dataclass(frozen=True)
class Plot:
    """A figure, what it shows in words, and its numbers as a table of texts."""

    name: str  # of its files
    title: str
    alt: str
    figure: Figure
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def words(self) -> str:
        """All that may be written in it."""
        return "".join([self.title, *self.header, *(text for row in self.rows for text in row)])

    def files(self) -> dict[str, bytes]:
        """SVG, PNG and PDF by file name."""
        return {f"{self.name}.{kind}": self.file(kind) for kind in ("svg", "png", "pdf")}

    def file(self, kind: str) -> bytes:
        """One of them: svg, png or pdf."""
        return self._save(kind)

    def _opening(self, svg: str) -> str:
        """The first tag of the inline SVG: as wide as its text is readable."""
        left, top, width, height = re.search(r'viewBox="([^"]*)"', svg)[1].split()  # type: ignore[index]
        size = f'viewBox="{left} {top} {width} {height}" style="width: {PIXELS_PER_POINT * float(width):.0f}px"'
        return str(Markup('<svg {} role="img" aria-label="{}">').format(Markup(size), self.alt))

    def inline(self, prefix: str) -> Markup:
        """The SVG element for a page: its colours are CSS variables, its ids start with `prefix`."""
        svg = self._save("svg").decode()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

        def change(tag: re.Match[str]) -> str:  # and not the words between tags
            text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag[0])
            for colour, name in CSS_NAMES.items():
                text = text.replace(colour, f"var(--{name})")
            return text

        opening = self._opening(svg)
        return Markup(opening + re.sub(r"<[^>]*>", change, svg[svg.index(">") + 1 :]))  # matplotlib escapes, as we do

    def _save(self, kind: str) -> bytes:
        """The figure as a file. Where no font here has a character, an SVG keeps its words, for the browser's fonts."""
        content = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        as_words = kind == "svg" and lacking(self.words) != ""
        with style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # `Report.figure_files` tells
            matplotlib.rcParams["svg.fonttype"] = "none" if as_words else "path"
            self.figure.savefig(content, format=kind, dpi=PNG_DPI, metadata=metadata)
        return _with_room(content.getvalue().decode(), self.figure).encode() if as_words else content.getvalue()


def _with_room(svg: str, figure: Figure) -> str:
    """An SVG whose words are text: any font will do, and there is room at the sides for characters of a whole em."""
    svg = svg.replace(f"'{FONT}'", f"'{FONT}', sans-serif")
    ruler, more = Ruler(), 0.0
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        wide = "".join(c for c in text.get_text() if is_wide(c) and lacking(c))
        size = float(text.get_fontsize())
        more = max(more, size * len(wide) - ruler.width(wide, size * DPI / 72) * 72 / DPI if wide else 0.0)

    def widen(box: re.Match[str]) -> str:
        width, height = float(box[1]), box[2]
        return f'viewBox="{-more:g} 0 {width + 2 * more:g} {height}"'

    return re.sub(r'viewBox="0 0 (\S+) (\S+)"', widen, svg, count=1) if more > 0 else svg


def new_figure(width: float = 4.0, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure of inches with one pair of axes; never pyplot."""
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=FAINT, length=3)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    return figure, axes


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Words on the axes; a `$` in a name is a dollar."""
    for setter, text, size, colour in (
        (axes.set_title, title, 10, INK),
        (axes.set_xlabel, x, 9.5, FAINT),
        (axes.set_ylabel, y, 9.5, FAINT),
    ):
        setter(text, fontsize=size, color=colour, parse_math=False)


def legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Below the plot, in as many columns."""
    handles, names = axes.get_legend_handles_labels()
    box = figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in box.get_texts():
        text.set_color(INK)
        text.set_parse_math(False)


def series(number: int) -> tuple[str, str]:
    """Colour and marker of the number-th of several."""
    return SERIES[number % len(SERIES)], MARKERS[(number + number // len(SERIES)) % len(MARKERS)]
