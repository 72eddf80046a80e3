"""Results as tables for people: the same rows for the terminal, for Markdown and for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipguard.core.eps import show_eps
from clipguard.core.html_table import html_table
from clipguard.core.markdown import markdown_table
from clipguard.core.records.run import ProtocolRecord
from clipguard.sanity.entries import finding_lines

if TYPE_CHECKING:
    from clipguard.benchmark.results.result import BenchResult, Cell

AVERAGE = "average"
NOTHING = "No cell was finished."
MOST_LINES = 12  # of rows that a repr shows
Column = tuple[str, float]  # attack, eps


@dataclass(frozen=True)
class Row:
    """One line: a model on a data set, or a model's average over its data sets (which has no interval)."""

    model: str
    dataset: str
    n: int
    values: dict[Column, tuple[float, Cell | None]]  # accuracy in [0,1], its cell


def columns(cells: Iterable[Cell]) -> list[Column]:
    """All columns: clean, then attacks in order of appearance, eps ascending."""
    seen = list(dict.fromkeys((c.attack, c.eps) for c in cells))
    attacks = list(dict.fromkeys(a for a, _ in seen))
    return sorted(seen, key=lambda column: (column[0] != "none", attacks.index(column[0]), column[1]))


def rows(cells: list[Cell]) -> list[Row]:
    """A row per model and data set, and after each model with several sets its unweighted average."""
    out: list[Row] = []
    for model in dict.fromkeys(c.model for c in cells):
        of_model = [c for c in cells if c.model == model]
        of_sets = rows_of_sets(of_model)
        out += of_sets
        if len(of_sets) > 1:
            out.append(Row(model, AVERAGE, sum(row.n for row in of_sets), _averages(of_model, len(of_sets))))
    return out


def rows_of_sets(cells: list[Cell]) -> list[Row]:
    """A row for each data set of one model."""
    by_dataset: dict[str, list[Cell]] = {}
    for cell in cells:
        by_dataset.setdefault(cell.dataset, []).append(cell)
    return [
        Row(of_set[0].model, dataset, of_set[0].n, {(c.attack, c.eps): (c.accuracy, c) for c in of_set})
        for dataset, of_set in by_dataset.items()
    ]


def _averages(cells: list[Cell], n_datasets: int) -> dict[Column, tuple[float, Cell | None]]:
    """The mean accuracy of each column that all data sets of one model have."""
    averages: dict[Column, tuple[float, Cell | None]] = {}
    for column in columns(cells):
        accuracies = [c.accuracy for c in cells if (c.attack, c.eps) == column]
        if len(accuracies) == n_datasets:
            averages[column] = (sum(accuracies) / len(accuracies), None)
    return averages


def heading(column: Column, norm: str, attacks: list[str]) -> str:
    """`clean`, `eps 4/255`, or `pgd-10 4/255` where several attacks share the table."""
    attack, eps = column
    if attack == "none":
        return "clean"
    return f"{'eps' if len(attacks) == 1 else attack} {eps_text(eps, norm)}"


def eps_text(eps: float, norm: str) -> str:
    """`4/255`, or `l2 0.5`, of an eps as in the tables."""
    return show_eps(eps, norm) if norm == "linf" else f"{norm} {show_eps(eps, norm)}"


def interval(cell: Cell) -> str:
    """`65.2-77.0` in percent."""
    return f"{100 * cell.ci_low:.1f}–{100 * cell.ci_high:.1f}"


def caption(result: BenchResult) -> str:
    """One line on what the numbers are."""
    attacks = sorted({c.attack for c in result.cells if c.attack != "none"})
    if "defense" in result.run and attacks:
        attacks = [f"{' and '.join(result.run['plan']['attacks'])} as {', '.join(result.run['defense']['threats'])}"]
    norms = sorted({c.norm for c in result.cells})
    what = f"robust accuracy is an upper bound, under {', '.join(attacks)} ({', '.join(norms)})" if attacks else "clean"
    nested = ", NESTED eps mode: small budgets were only confirmed" if result.run["eps_mode"] == "nested" else ""
    defense = f"; {defense_line(result)}" if "defense" in result.run else ""
    record = result.run.get("protocol")
    protocol = f"; {protocol_line(record)}" if record else ""
    invariant = all(answer["holds"] for answer in result.run.get("batch_invariant", {}).values())
    digits = "" if invariant else " Last digits may depend on the batch here (run.batch_invariant)."
    partial = "" if result.run["complete"] else " INTERRUPTED: finished cells only."
    seed = f"seed {result.run['seed']}"
    return f"Accuracy in %, with 95 % Wilson intervals; {what}{nested}{defense}{protocol}; {seed}.{digits}{partial}"


def defense_line(result: BenchResult) -> str:
    """What the defences cost, what their gates flag, who decides, and that a weak attack is one."""
    record = result.run["defense"]
    forward, backward = record["passes"]
    names = " + ".join(defense["defense"] for defense in record["chain"])
    votes = f", most of {record['votes']} votes{_votes_again(result)}" if record["random"] else ""
    weak = "" if "adaptive" in record["threats"] else f"; WEAK: {' and '.join(record['threats'])} alone"
    return f"{names} takes up to {forward} forward and {backward} backward passes an image{_gates(result)}{votes}{weak}"


def _gates(result: BenchResult) -> str:
    """`, flags 3 of 100 clean images`: what findings say of gates."""
    found = [f["numbers"] for entry in result.run.get("findings", []) for f in entry["findings"]]
    counts = [f"{numbers['flagged']} of {numbers['n']}" for numbers in found if "flagged" in numbers]
    return f", flags {', '.join(counts)} clean images" if counts else ""


def _votes_again(result: BenchResult) -> str:
    """` (±1.4 points beside the interval)`: of the cell that other votes may change most."""
    from clipguard.statistics.intervals import interval_of_votes

    votes, cells = result.run["defense"]["votes"], result.samples.groupby(["model", "dataset", "attack", "eps"])
    widest = max((interval_of_votes(rows["margin"].to_numpy(), votes) for _, rows in cells), default=0.0)
    return f" (other votes: up to ±{100 * widest:.1f} points, beside the interval)"


def protocol_line(protocol: ProtocolRecord) -> str:
    """`protocol fare`, and what was changed beside it."""
    changes = ", ".join(f"{key} {_plain(value)}" for key, value in protocol["overrides"].items())
    return f"protocol {protocol['name']}{f' CHANGED: {changes}' if changes else ''}"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Texts:
    """A table as texts: what Markdown and notebooks show alike."""

    headings: list[str]
    rows: list[list[str]]
    alignment: str


def _texts(result: BenchResult, bold: str) -> _Texts:
    """The table of a result with cells; `bold` stands around what has no interval."""
    cells = result.cells
    table = columns(cells)
    attacks = sorted({a for a, _ in table if a != "none"})
    headings = ["model", "data set", "n", *(heading(c, cells[0].norm, attacks) for c in table)]
    return _Texts(headings, [_row_texts(row, table, bold) for row in rows(cells)], "ll" + "r" * (len(headings) - 2))


def _row_texts(row: Row, table: list[Column], bold: str) -> list[str]:
    values = []
    for column in table:
        accuracy, cell = row.values.get(column, (None, None))
        text = "–" if accuracy is None else f"{100 * accuracy:.1f}"
        values.append(f"{text} ({interval(cell)})" if cell else f"{bold}{text}{bold}")
    return [row.model, row.dataset, str(row.n), *values]


def to_markdown(result: BenchResult) -> str:
    """A table to paste into a paper or a pull request."""
    if not result.cells:
        return f"{NOTHING}\n"
    texts = _texts(result, "**")
    lines = markdown_table(texts.headings, texts.rows, texts.alignment)
    checks = [line for text in finding_lines(result.run.get("findings", [])) for line in ("", text)]
    return "\n".join([*lines, "", caption(result), *checks]) + "\n"


def to_html(result: BenchResult) -> str:
    """The same for a notebook."""
    if not result.cells:
        return html_table([], [], "", [NOTHING])
    texts = _texts(result, "")
    notes = [caption(result), *finding_lines(result.run.get("findings", []))]
    return html_table(texts.headings, texts.rows, texts.alignment, notes)


def to_lines(result: BenchResult) -> list[str]:
    """The same for a prompt: what was measured, and a line for each model and data set."""
    if not result.cells:
        return [NOTHING]
    texts = _texts(result, "")
    lines = [
        f"{model} on {dataset}, n {n}: " + ", ".join(map(" ".join, zip(texts.headings[3:], values, strict=True)))
        for model, dataset, n, *values in texts.rows
    ]
    more = [f"... and {len(lines) - MOST_LINES} lines more"] if len(lines) > MOST_LINES else []
    return [caption(result), *lines[:MOST_LINES], *more]
