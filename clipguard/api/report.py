"""`clipguard.report`: results as one page or as Markdown."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from clipguard.adversarial.replay import Replay, ReplayRequest, replay_images
from clipguard.benchmark.results.result import BenchResult
from clipguard.core.checking import check_type
from clipguard.core.errors import ClipguardError
from clipguard.core.files.output import OutputFile, OutputFolder
from clipguard.core.progress import Progress, Silent
from clipguard.reporting.board import Images, Run, read_runs
from clipguard.reporting.gallery import MOST_PICTURES, Picture, replayed_pictures, stored_pictures
from clipguard.reporting.page import Report, make_report

MOST_BYTES = 10_000_000  # of a page that opens quickly
log = logging.getLogger("clipguard")


def report(
    runs: str | Path | BenchResult | Sequence[str | Path | BenchResult],
    out: str | Path | None = None,
    *,
    format: Literal["html", "md"] = "html",
    figures: str | Path | None = None,
    gallery: int = 8,
    title: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write tables, plots, classes, adversarial images and provenance of results, as one HTML page or Markdown.

    Args:
        runs: what `bench` gave, folders of `clipguard bench`, or their results.json; several become a leaderboard.
            Folders of `clipguard attack` add images to the gallery.
        out: new file; default report.html or report.md.
        format: "html": one page that needs nothing else; "md": Markdown with figures beside it.
        figures: new folder for every plot as SVG, PNG (300 dpi) and PDF; default none, for Markdown NAME-figures.
        gallery: broken images to show, at most, in HTML; bench keeps none: they are attacked again.
        title: default: named after the models.
        progress: is told of the images that are attacked again.

    Returns:
        The file.

    Raises:
        ClipguardError: for what is no result, and for files that are there.
    """
    check_type("`format`", format, Literal["html", "md"])
    check_type("`gallery`", gallery, int)
    given: list[Any] = list(runs) if isinstance(runs, (list, tuple)) else [runs]
    for run in given:
        if not isinstance(run, BenchResult):
            check_type("A run, a folder or file,", run, str | Path)
    if not 0 <= gallery <= MOST_PICTURES:
        cure = "clipguard attack has more"
        raise ClipguardError(f"`gallery` must be from 0 to {MOST_PICTURES}, not {gallery}; {cure}.")
    page = Path(out) if out else Path(f"report.{format}")
    folder = Path(figures) if figures else page.with_name(f"{page.stem}-figures") if format == "md" else None
    with ExitStack() as places:
        drawings = places.enter_context(OutputFolder(folder, option="--figures", whole=True)) if folder else None
        file = places.enter_context(OutputFile(page))
        benches, images = read_runs([run if isinstance(run, BenchResult) else Path(run) for run in given])
        made = make_report(benches, title)
        if format == "html":
            content = _add_gallery(made, benches, images, gallery, progress or Silent()).html()
        else:
            assert drawings is not None  # Markdown has its figures beside it
            content = made.markdown(_link(drawings.path, file.path))
        if drawings:
            drawings.write_files(made.figure_files())
            log.info("%d plots written to %s", len(made.plots), drawings.path)
        file.write(content.encode())
    size = page.stat().st_size
    log.info("Written to %s (%.1f MB)", page, size / 1e6)
    if size > MOST_BYTES:
        log.warning("%s is larger than 10 MB; report fewer runs at once, or with a smaller `gallery`.", page)
    return page


def _link(figures: Path, out: Path) -> str:
    """The folder of figures as seen from the Markdown file."""
    return quote(Path(os.path.relpath(figures, out.parent)).as_posix())


def _add_gallery(made: Report, runs: list[Run], kept: list[Images], n: int, progress: Progress) -> Report:
    """The report with pictures: those that `clipguard attack` kept, and broken images of runs, attacked again."""
    if n == 0:
        return replace(made, picture_notes=["Left out (--gallery 0)."])
    pictures: list[Picture] = []
    notes: list[str] = []
    for images in kept:
        pictures += stored_pictures(images, n - len(pictures))

    def replay(run: int, requests: Sequence[ReplayRequest]) -> list[Replay]:
        result = next(r.result for r in runs if r.number == run)
        return replay_images(result.run, requests, progress)

    for section in made.sections:
        recomputed, why_not = replayed_pictures(section.board, n - len(pictures), replay)
        pictures += recomputed
        notes += why_not
    for note in notes:
        log.warning("Gallery: %s", note)
    return replace(made, pictures=pictures, picture_notes=notes)
