"""`clipguard report`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
**Examples**

`clipguard report runs/20260102-030405-tiny` — report.html, to look at

`clipguard report runs/base runs/tuned --out leaderboard.html` — several runs side by side

`clipguard report runs/base runs/attack-base --gallery 4` — with images that `clipguard attack` kept

`clipguard report runs/base --figures figures` — every plot as SVG, PNG and PDF, for a paper

`clipguard report runs/base --format md` — report.md, and figures beside it
"""


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
    from clipguard.api.report import report as write_report
    from clipguard.cli.console.progress import RichProgress

    with RichProgress() as progress:
        write_report(
            runs,
            out,
            format=output_format.value,
            figures=figures,
            gallery=gallery,
            title=title,
            progress=progress,
        )
