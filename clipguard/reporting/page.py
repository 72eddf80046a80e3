"""A report as one HTML page that needs nothing else, as Markdown, and as a folder of figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipguard.benchmark.results.table import AVERAGE, columns, heading, interval
from clipguard.core.markdown import escape_markdown
from clipguard.core.version import __version__
from clipguard.figures.fonts import warn_of_boxes
from clipguard.figures.style import Plot, style
from clipguard.reporting.board import CLEAN, Board, Run, differences, make_boards
from clipguard.reporting.classes import MOST_MAPS, Confusion, confusions, heat_maps, pairs
from clipguard.reporting.gallery import Picture
from clipguard.reporting.plots import accuracy_curves, broken_shares, percent, trade_offs
from clipguard.reporting.provenance import Reference, Source, describe, references
from clipguard.sanity.checks import VERDICTS, Verdict


@dataclass(frozen=True)
class Value:
    """An accuracy in the table: in percent, its interval, and the number that it is sorted by."""

    text: str
    interval: str
    number: float


@dataclass(frozen=True)
class Line:
    """A row of the table; an empty value where there is no cell."""

    model: str
    dataset: str
    n: int
    average: bool
    values: list[Value | None]


@dataclass(frozen=True)
class Section:
    """Everything about the results under one norm."""

    board: Board
    headings: list[str]
    lines: list[Line]
    curves: list[Plot]
    trade_offs: list[Plot]
    shares: list[Plot]
    classes: list[Plot]
    classes_left_out: int
    confusions: list[Confusion]

    @property
    def plots(self) -> list[Plot]:
        """All of them."""
        return [*self.curves, *self.trade_offs, *self.shares, *self.classes]


@dataclass(frozen=True)
class FindingLine:
    """What a sanity check said of a model on a data set."""

    model: str
    dataset: str
    id: str
    verdict: Verdict
    evidence: str
    advice: str


@dataclass(frozen=True)
class Report:
    """What a report says. `pictures` and `picture_notes` are the gallery, added by who can attack images."""

    title: str
    sections: list[Section]
    sources: list[Source]
    notes: list[str]
    findings: list[FindingLine]
    unrecorded: list[int]  # runs whose findings were not recorded
    references: list[Reference]
    pictures: list[Picture] = field(default_factory=list)
    picture_notes: list[str] = field(default_factory=list)

    @property
    def plots(self) -> list[Plot]:
        """All of them, each with a file name of its own."""
        return [plot for section in self.sections for plot in section.plots]

    def html(self) -> str:
        """One page: no network, no other file."""
        environment = _environment(autoescape=True)
        loader = environment.loader
        assert loader is not None
        assets = {name: Markup(loader.get_source(environment, f"report.{name}")[0]) for name in ("css", "js")}
        return environment.get_template("report.html.j2").render(report=self, assets=assets, version=__version__)

    def markdown(self, figures: str) -> str:
        """Markdown with links to the figures (SVG) in a folder beside it, and tables of their numbers."""
        environment = _environment(autoescape=False)
        environment.filters["md"] = escape_markdown
        text = environment.get_template("report.md.j2").render(report=self, figures=figures, version=__version__)
        return re.sub(r"\n{3,}", "\n\n", text)

    def figure_files(self) -> dict[str, bytes]:
        """Every plot as SVG, PNG and PDF, by file name; the log says which characters no font has."""
        warn_of_boxes("PNG and PDF of the plots", (plot.words for plot in self.plots))
        return {name: content for plot in self.plots for name, content in plot.files().items()}


def make_report(runs: Sequence[Run], title: str | None = None) -> Report:
    """The report of some runs, without a gallery; its title names the models if none is given."""
    boards = make_boards(runs)
    models = list(dict.fromkeys(cell.model for run in runs for cell in run.result.cells))
    what = models[0] if len(models) == 1 else f"{len(models)} models"
    interrupted = [
        f"Run {r.number} was interrupted: finished cells only." for r in runs if not r.result.run["complete"]
    ]
    names = [name for board in boards for of_one in board.class_names.values() for name in of_one]
    with style("".join([*names, *(text for board in boards for text in (*board.models, *board.panels()))])):
        sections = [_section(board) for board in boards]
    return Report(
        title or f"Adversarial robustness of {what}",
        sections,
        [describe(run) for run in runs],
        [*interrupted, *_nested(boards), *differences(runs)],
        _findings(runs),
        [run.number for run in runs if "findings" not in run.result.run],
        references(runs),
    )


def _section(board: Board) -> Section:
    table = columns(board.cells)
    lines = []
    for row in board.rows():
        cells = [row.values.get(column, (None, None))[1] for column in table]
        values = [Value(percent(c.accuracy), interval(c), c.accuracy) if c else None for c in cells]
        lines.append(Line(row.model, row.dataset, row.n, row.dataset == AVERAGE, values))
    return Section(
        board,
        [heading(column, board.norm, board.attacks) for column in table],
        lines,
        accuracy_curves(board),
        trade_offs(board),
        broken_shares(board),
        heat_maps(board),
        max(0, len(pairs(board)) - MOST_MAPS),
        confusions(board, max(board.eps)) if board.eps else [],
    )


def _nested(boards: Sequence[Board]) -> list[str]:
    nested = [attack for board in boards for attack in board.attacks if attack.endswith("[nested]")]
    return [f"{name}: in this mode survivors of the largest eps are only confirmed at smaller ones." for name in nested]


def _findings(runs: Sequence[Run]) -> list[FindingLine]:
    """`run.findings` of all runs, worst first."""
    lines = [
        FindingLine(e["model"], e["dataset"], f["id"], f["verdict"], f["evidence"], f.get("advice", ""))
        for run in runs
        for e in run.result.run.get("findings", [])
        for f in e["findings"]
    ]
    return sorted(lines, key=lambda line: VERDICTS.index(line.verdict))


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("clipguard.reporting"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.globals.update(CLEAN=CLEAN, AVERAGE=AVERAGE, VERDICTS=VERDICTS)
    return environment
