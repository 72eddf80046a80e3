"""Certificates as tables for people: the same texts for the terminal, for Markdown and at a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipguard.core.markdown import escape_markdown, markdown_table

if TYPE_CHECKING:
    from clipguard.certification.result import CertifiedCell, CertifyResult, Share

NOTHING = "No cell was finished."
Value = tuple[str, str]  # a number, and its interval or ""


def headings(result: CertifyResult) -> list[str]:
    """Of the columns after model and data set."""
    radii = [f"r {share.radius:g}" for share in result.cells[0].certified]
    return ["sigma", "n", "clean", "noisy", "abstains", *radii]


def values(cell: CertifiedCell) -> list[Value]:
    """What stands below `headings`."""
    shares = [_share(share) for share in (cell.base, cell.smoothed)]
    certified = [_share(share) for share in cell.certified]
    return [(f"{cell.sigma:g}", ""), (str(cell.n), ""), *shares, (str(cell.abstained), ""), *certified]


def _share(share: Share) -> Value:
    return f"{100 * share.accuracy:.1f}", f"{100 * share.ci_low:.1f}–{100 * share.ci_high:.1f}"


def notes(result: CertifyResult) -> Iterator[str]:
    """What the numbers are, in sentences."""
    asked, partial = result.run["plan"], "" if result.run["complete"] else " INTERRUPTED: finished cells only."
    yield (
        "Accuracy in %, with 95 % Wilson intervals. clean: without noise; noisy: the most frequent class of "
        f"{asked['selection_samples']} noisy copies; r: certified at that l2 radius (pixels of [0,1]), each image with "
        f"confidence {asked['confidence']:g}, from {asked['samples']:,} more copies; seed {asked['seed']}.{partial}"
    )
    largest = ", ".join(dict.fromkeys(f"{cell.largest_radius:.4g} (sigma {cell.sigma:g})" for cell in result.cells))
    yield f"Largest radius that so many copies can certify: {largest}. A certificate in l2 says little about linf."


def to_markdown(result: CertifyResult) -> str:
    """A table to paste into a paper or a pull request."""
    if not result.cells:
        return f"{NOTHING}\n"
    names = headings(result)
    rows = [
        [escape_markdown(cell.model), escape_markdown(cell.dataset), *map(_on_one_line, values(cell))]
        for cell in result.cells
    ]
    table = markdown_table(["model", "data set", *names], rows, "ll" + "r" * len(names))
    return "\n".join([*table, *(line for note in notes(result) for line in ("", note))]) + "\n"


def to_lines(result: CertifyResult) -> list[str]:
    """The same for a prompt: a line a cell, and what the numbers are."""
    if not result.cells:
        return [NOTHING]
    names = headings(result)
    lines = [
        f"{cell.model} on {cell.dataset}: "
        + ", ".join(f"{name} {_on_one_line(value)}" for name, value in zip(names, values(cell), strict=True))
        for cell in result.cells
    ]
    return [*lines, *notes(result)]


def _on_one_line(value: Value) -> str:
    number, interval = value
    return f"{number} ({interval})" if interval else number
