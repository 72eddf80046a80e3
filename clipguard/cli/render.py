"""Results on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipguard.benchmark.results import BenchResult
from clipguard.benchmark.tables import AVERAGE, caption, columns, heading, interval, rows


def print_table(result: BenchResult) -> None:
    """The table of a run on stdout: accuracy in percent over its interval."""
    cells = result.cells
    table_columns = columns(cells)
    attacks = sorted({a for a, _ in table_columns if a != "none"})
    models = list(dict.fromkeys(c.model for c in cells))
    table = Table(caption=caption(result), caption_justify="left")
    if len(models) > 1:
        table.add_column("model")
    table.add_column("data set" if len(models) > 1 else f"{models[0]} on")
    table.add_column("n", justify="right")
    for column in table_columns:
        table.add_column(heading(column, cells[0].norm, attacks), justify="right")
    for row in rows(cells):
        values: list[Text] = []
        for column in table_columns:
            accuracy, cell = row.values.get(column, (None, None))
            text = Text("–" if accuracy is None else f"{100 * accuracy:.1f}", style="bold")
            values.append(text.append(f"\n{interval(cell)}", style="not bold dim") if cell else text)
        style = "italic" if row.dataset == AVERAGE else ""
        head = [Text(row.model), Text(row.dataset)] if len(models) > 1 else [Text(row.dataset)]
        table.add_row(*head, str(row.n), *values, style=style, end_section=row.dataset == AVERAGE)
    Console().print(table)
