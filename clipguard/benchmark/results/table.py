"""Results as tables for people: the same rows for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clipguard.benchmark.results.result import BenchResult, Cell
from clipguard.core.run_record import ProtocolRecord
from clipguard.sanity.entries import finding_lines

AVERAGE = "average"


@dataclass(frozen=True)
class Row:
    """One line: a model on a data set, or a model's average over its data sets (which has no interval)."""

    model: str
    dataset: str
    n: int
    values: dict[tuple[str, float], tuple[float, Cell | None]]  # (attack, eps) -> accuracy in [0,1], its cell


def columns(cells: Iterable[Cell]) -> list[tuple[str, float]]:
    """(attack, eps) of all columns: clean, then attacks in order of appearance, eps ascending."""
    seen = list(dict.fromkeys((c.attack, c.eps) for c in cells))
    attacks = list(dict.fromkeys(a for a, _ in seen))
    return sorted(seen, key=lambda column: (column[0] != "none", attacks.index(column[0]), column[1]))


def rows(cells: list[Cell]) -> list[Row]:
    """A row per model and data set, and after each model with several sets its unweighted average."""
    out: list[Row] = []
    for model in dict.fromkeys(c.model for c in cells):
        mine = [c for c in cells if c.model == model]
        datasets = list(dict.fromkeys(c.dataset for c in mine))
        for dataset in datasets:
            own = [c for c in mine if c.dataset == dataset]
            out.append(Row(model, dataset, own[0].n, {(c.attack, c.eps): (c.accuracy, c) for c in own}))
        if len(datasets) > 1:
            average: dict[tuple[str, float], tuple[float, Cell | None]] = {}
            for column in columns(mine):
                found = [c.accuracy for c in mine if (c.attack, c.eps) == column]
                if len(found) == len(datasets):
                    average[column] = (sum(found) / len(found), None)
            out.append(Row(model, AVERAGE, sum(r.n for r in out if r.model == model), average))
    return out


def heading(column: tuple[str, float], norm: str, attacks: list[str]) -> str:
    """`clean`, `eps 4/255`, or `pgd-10 4/255` where several attacks share the table."""
    attack, eps = column
    if attack == "none":
        return "clean"
    radius = f"{eps:g}/255" if norm == "linf" else f"{norm} {eps:g}"
    return f"{'eps' if len(attacks) == 1 else attack} {radius}"


def interval(cell: Cell) -> str:
    """`65.2-77.0` in percent."""
    return f"{100 * cell.ci_low:.1f}–{100 * cell.ci_high:.1f}"


def caption(result: BenchResult) -> str:
    """One line on what the numbers are."""
    attacks = sorted({c.attack for c in result.cells if c.attack != "none"})
    norms = sorted({c.norm for c in result.cells})
    what = f"robust accuracy is an upper bound, under {', '.join(attacks)} ({', '.join(norms)})" if attacks else "clean"
    nested = ", NESTED eps mode: small budgets were only confirmed" if result.run["eps_mode"] == "nested" else ""
    family = result.run.get("protocol")
    protocol = f"; {protocol_line(family)}" if family else ""
    invariant = all(answer["holds"] for answer in result.run.get("batch_invariant", {}).values())
    digits = "" if invariant else " Last digits may depend on the batch here (run.batch_invariant)."
    partial = "" if result.run["complete"] else " INTERRUPTED: finished cells only."
    seed = f"seed {result.run['seed']}"
    return f"Accuracy in %, with 95 % Wilson intervals; {what}{nested}{protocol}; {seed}.{digits}{partial}"


def protocol_line(protocol: ProtocolRecord) -> str:
    """`protocol fare`, and what was changed beside it."""
    changes = ", ".join(f"{key} {_plain(value)}" for key, value in protocol["overrides"].items())
    return f"protocol {protocol['name']}{f' CHANGED: {changes}' if changes else ''}"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_markdown(result: BenchResult) -> str:
    """A table to paste into a paper or a pull request."""
    cells = result.cells
    if not cells:
        return "No cell was finished.\n"
    table = columns(cells)
    attacks = sorted({a for a, _ in table if a != "none"})
    names = ["model", "data set", "n", *(heading(c, cells[0].norm, attacks) for c in table)]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * 2 + " ---: |" * (len(names) - 2)]
    for row in rows(cells):
        values = []
        for column in table:
            accuracy, cell = row.values.get(column, (None, None))
            text = "–" if accuracy is None else f"{100 * accuracy:.1f}"
            values.append(f"{text} ({interval(cell)})" if cell else f"**{text}**")
        lines.append("| " + " | ".join([row.model, row.dataset, str(row.n), *values]) + " |")
    checks = [line for text in finding_lines(result.run.get("findings", [])) for line in ("", text)]
    return "\n".join([*lines, "", caption(result), *checks]) + "\n"
