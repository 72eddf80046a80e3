"""`clipguard report`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipguard.core.errors import ClipguardError

if TYPE_CHECKING:
    from clipguard.adversarial.replay import Wanted
    from clipguard.adversarial.result import AdversarialImage
    from clipguard.core.output import OutputFile, OutputFolder
    from clipguard.report.board import Images, Run
    from clipguard.report.gallery import Picture
    from clipguard.report.page import Report

EXAMPLES = """
**Examples**

`clipguard report runs/20260102-030405-tiny` — report.html, to look at

`clipguard report runs/base runs/tuned --out leaderboard.html` — several runs side by side

`clipguard report runs/base runs/attack-base --gallery 4` — with images that `clipguard attack` kept

`clipguard report runs/base --figures figures` — every plot as SVG, PNG and PDF, for a paper

`clipguard report runs/base --format md` — report.md, and figures beside it
"""
MOST_BYTES = 10_000_000
log = logging.getLogger("clipguard")


class Format(str, Enum):
    """What the report is written as."""

    html = "html"
    md = "md"


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of `clipguard bench` or their results.json; several: a leaderboard. Folders of `clipguard "
            "attack` add images to the gallery.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New file. Default: report.html, or report.md.")
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", "-f", help="html: one page that needs nothing else; md: Markdown.")
    ] = Format.html,
    figures: Annotated[
        Path | None,
        typer.Option(help="New folder for every plot as SVG, PNG (300 dpi) and PDF. Default: none; md: NAME-figures."),
    ] = None,
    gallery: Annotated[
        int,
        typer.Option(help="Broken images to show, at most; bench keeps none: they are attacked again. Not in md."),
    ] = 8,
    title: Annotated[str | None, typer.Option(help="Default: named after the models.")] = None,
) -> None:
    """Show results: tables, plots, classes, adversarial images and provenance, as one HTML page or Markdown."""
    from clipguard.core.output import OutputFile, OutputFolder
    from clipguard.report.gallery import MOST_PICTURES

    if not 0 <= gallery <= MOST_PICTURES:
        raise ClipguardError(f"--gallery must be from 0 to {MOST_PICTURES}, not {gallery}; clipguard attack has more.")
    out = out or Path(f"report.{output_format.value}")
    if output_format is Format.md:
        figures = figures or out.with_name(f"{out.stem}-figures")
    with ExitStack() as places:
        drawings = places.enter_context(OutputFolder(figures, option="--figures", whole=True)) if figures else None
        file = places.enter_context(OutputFile(out))
        _write(runs, file, drawings, output_format, gallery, title)
    size = out.stat().st_size
    log.info("Written to %s (%.1f MB)", out, size / 1e6)
    if size > MOST_BYTES:
        log.warning("%s is larger than 10 MB; report fewer runs at once, or with a smaller --gallery.", out)


def _write(
    runs: list[Path],
    file: OutputFile,
    drawings: OutputFolder | None,
    output_format: Format,
    gallery: int,
    title: str | None,
) -> None:
    from clipguard.report.board import read_runs
    from clipguard.report.page import make_report

    benches, images = read_runs(runs)
    made = make_report(benches, title)
    if output_format is Format.html:
        made = _add_gallery(made, benches, images, gallery)
        content = made.html()
    else:
        assert drawings is not None  # Markdown has its figures beside it
        content = made.markdown(_link(drawings.path, file.path))
    if drawings:
        drawings.write_files(made.figure_files())
        log.info("%d plots written to %s", len(made.plots), drawings.path)
    file.write(content.encode())


def _link(figures: Path, out: Path) -> str:
    """The folder of figures as seen from the Markdown file."""
    import os
    from urllib.parse import quote

    return quote(Path(os.path.relpath(figures, out.parent)).as_posix())


def _add_gallery(made: Report, runs: list[Run], kept: list[Images], n: int) -> Report:
    """The report with pictures: those that `clipguard attack` kept, and broken images of runs, attacked again."""
    from clipguard.adversarial.replay import attack_again
    from clipguard.cli.console.progress import RichProgress
    from clipguard.report.gallery import recompute, stored

    if n == 0:
        return replace(made, picture_notes=["Left out (--gallery 0)."])
    pictures: list[Picture] = []
    notes: list[str] = []
    for images in kept:
        pictures += stored(images, n - len(pictures))
    with RichProgress() as progress:

        def open_images(run: int, wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, AdversarialImage | str]]:
            result = next(r.result for r in runs if r.number == run)
            return attack_again(result.run, wanted, progress)

        for section in made.sections:
            found, why_not = recompute(section.board, n - len(pictures), open_images)
            pictures += found
            notes += why_not
    for note in notes:
        log.warning("Gallery: %s", note)
    return replace(made, pictures=pictures, picture_notes=notes)
