"""Tables for notebooks: HTML without styles or scripts, as Jupyter shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

HEADING = Markup("<th>{}</th>")
CELL = Markup('<td style="text-align: {}">{}</td>')
SIDES = {"l": "left", "r": "right"}


def html_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], alignment: str, notes: Iterable[str] = ()
) -> str:
    """A table and lines below it, every text escaped; `alignment` has a letter for each column: l or r."""
    head = Markup().join(HEADING.format(heading) for heading in headings)
    body = Markup().join(_row(row, alignment) for row in rows)
    table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)
    return str(table + Markup().join(Markup("<p>{}</p>").format(note) for note in notes))


def _row(cells: Sequence[str], alignment: str) -> Markup:
    cells_of_row = (CELL.format(SIDES[side], cell) for cell, side in zip(cells, alignment, strict=True))
    return Markup("<tr>{}</tr>").format(Markup().join(cells_of_row))
