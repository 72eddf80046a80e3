"""Results on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipguard.adversarial.result import PREDICTED, AdversarialImage, AdversarialResult
from clipguard.benchmark.checks.diagnosis import Diagnosis
from clipguard.benchmark.results.result import BenchResult, Cell
from clipguard.benchmark.results.table import AVERAGE, caption, columns, eps_text, heading, interval, rows
from clipguard.comparison.output import cell_values, comparison_notes
from clipguard.comparison.result import Comparison
from clipguard.core.eps import show_eps
from clipguard.core.records.prediction import Prediction
from clipguard.sanity.checks import VERDICTS
from clipguard.sanity.entries import alarms, finding_lines

VERDICT_STYLES = {"failure": "bold red", "warning": "yellow", "ok": "green", "not checked": "dim"}


def short(name: str, width: int = 28) -> str:
    """The end of a long name, where paths differ: `…/models/lite0`."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def print_table(result: BenchResult) -> None:
    """The table of a run on stdout: accuracy in percent over its interval."""
    table = _threat_table(result) if "defense" in result.run else _accuracy_table(result)
    console = Console()
    console.print(table)
    print_findings(console, finding_lines(result.run.get("findings", [])))


def _threat_table(result: BenchResult) -> Table:
    """Of defended models: a row a threat, a column an eps."""
    cells = result.cells
    models = list(dict.fromkeys(c.model for c in cells))
    threats = [attack for attack in dict.fromkeys(attack for attack, _ in columns(cells)) if attack != "none"]
    eps = sorted({cell.eps for cell in cells if cell.attack != "none"})
    table = Table(caption=caption(result), caption_justify="left")
    table.add_column(f"{short(models[0])} on" if len(models) == 1 else "model, data set")
    for name in ("n", "attack", "clean", *(eps_text(one, cells[0].norm) for one in eps)):
        table.add_column(name, justify="left" if name == "attack" else "right")
    for row in rows(cells):
        name = short(row.dataset if len(models) == 1 else f"{row.model}, {row.dataset}")
        for number, threat in enumerate(threats or [""]):
            shown = [_accuracy(row.values.get((threat, one), (None, None))) for one in eps]
            head = [name, str(row.n)] if number == 0 else ["", ""]
            clean = _accuracy(row.values.get(("none", 0.0), (None, None))) if number == 0 else Text("")
            table.add_row(*head, threat, clean, *shown, end_section=number + 1 >= len(threats))
    return table


def _accuracy(value: tuple[float | None, Cell | None]) -> Text:
    """An accuracy in percent, over its interval if it has one."""
    accuracy, cell = value
    text = Text("–" if accuracy is None else f"{100 * accuracy:.1f}", style="bold")
    return text.append(f"\n{interval(cell)}", style="not bold dim") if cell else text


def _accuracy_table(result: BenchResult) -> Table:
    cells = result.cells
    table_columns = columns(cells)
    attacks = sorted({a for a, _ in table_columns if a != "none"})
    models = list(dict.fromkeys(c.model for c in cells))
    table = Table(caption=caption(result), caption_justify="left")
    if len(models) > 1:
        table.add_column("model")
    table.add_column("data set" if len(models) > 1 else f"{short(models[0])} on")
    table.add_column("n", justify="right")
    for column in table_columns:
        table.add_column(heading(column, cells[0].norm, attacks), justify="right")
    for row in rows(cells):
        values = [_accuracy(row.values.get(column, (None, None))) for column in table_columns]
        style = "italic" if row.dataset == AVERAGE else ""
        head = [Text(short(n)) for n in ([row.model, row.dataset] if len(models) > 1 else [row.dataset])]
        table.add_row(*head, str(row.n), *values, style=style, end_section=row.dataset == AVERAGE)
    return table


def print_findings(console: Console, lines: Iterable[str]) -> None:
    """Lines below a table, in the colour of their verdict."""
    for line in lines:
        console.print(Text(line, style=VERDICT_STYLES.get(line.partition(" ")[0].lower(), "dim")))


def print_comparison(comparison: Comparison) -> None:
    """The table of a comparison on stdout: a line a cell, and what it comes to."""
    styles = {"regression": "bold red", "inconclusive": "yellow", "no regression": "green"}
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("data set, cell", "images", "accuracy", "change", "p", "verdict"):
        table.add_column(name, justify="left" if name in ("data set, cell", "verdict") else "right")
    for cell in comparison.cells:
        dataset, name, n, base, candidate, change, interval_text, lost, gained, p, verdict = cell_values(cell)
        dim = "not bold dim"
        table.add_row(
            Text(short(dataset)).append(f"\n{short(name)}", style=dim),
            Text(n).append(f"\n−{lost} +{gained}", style=dim),
            Text(f"{base} → {candidate}"),
            Text(change, style="bold").append(f"\n{interval_text}", style=dim),
            Text(p),
            Text(verdict, style=styles[verdict]),
            style="italic" if cell.dataset == AVERAGE else "",
        )
    console = Console()
    console.print(table)
    for line in comparison_notes(comparison):
        console.print(Text(line))


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """A row a check on stdout: verdict, evidence, and what to do about it; then what it comes to."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("evidence")
    for finding in diagnosis.findings:
        evidence = Text(finding.evidence)
        if finding.advice:
            evidence.append(f"\n→ {finding.advice}", style="bold")
        table.add_row(Text(finding.id), Text(finding.verdict, style=VERDICT_STYLES[finding.verdict]), evidence)
    console = Console()
    console.print(table)
    counts = Counter(finding.verdict for finding in diagnosis.findings)
    said = ", ".join(f"{counts[v]} {v}" for v in reversed(VERDICTS) if counts[v])
    console.print(Text(f"{said}. docs/doctor.md explains every check.", style=VERDICT_STYLES[diagnosis.verdict]))


def print_rows(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A plain table on stdout."""
    table = Table(*headings, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)


def print_images(result: AdversarialResult) -> None:
    """A line for each image of `clipguard attack`, and the counts, on stdout."""
    unit = "/255" if result.run["norm"] == "linf" else ""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    for column in ("label", "clean", "adversarial", "broken by"):
        table.add_column(column)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("as PNG", no_wrap=True)
    for image in result.images:
        label, broken_by = result.class_names[image.label], image.row["broken_by"] or "–"
        before, after = (_prediction(p) for p in (image.before, image.after))
        after = Text("not attacked", style="dim") if image.row["broken_by"] == "clean" else after
        distance = f"{image.row['distance']:.3g}{unit}" if image.broken else "–"
        table.add_row(str(image.index), Text(label), before, after, Text(broken_by), distance, _as_png(image))
    console = Console()
    console.print(table)
    for line in _summary(result):
        console.print(Text(line))
    print_findings(console, alarms(result.run.get("findings", [])))


def _prediction(prediction: Prediction) -> Text:
    mark, colour = ("✓", "green") if prediction.right else ("✗", "red")
    text = Text(f"{mark} {prediction.name} ", style=colour)
    return text.append(f"{100 * prediction.confidence:.0f}%", style="dim")


def _as_png(image: AdversarialImage) -> str:
    if image.broken:
        return "undone" if image.robust_as_png else "broken"
    return "broken" if image.row["robust"] and not image.robust_as_png else "–"


def _summary(result: AdversarialResult) -> Iterator[str]:
    """What happened, in a line or a few."""
    run, counts = result.run, result.summary()
    (attack,), eps = run["attacks"], run["eps"][0]
    shown = f"{run['norm']} eps {show_eps(eps, run['norm'])}"
    images = "1 image" if counts["n"] == 1 else f"{counts['n']} images"
    yield (
        f"{images}: {counts['clean_correct']} right when clean; {attack} at {shown} broke {counts['broken']} "
        f"of them, {counts['robust']} held."
    )
    if run["labels"] == PREDICTED:
        yield "Labels are the model's own clean predictions (no --label was given)."
    if counts["broken"]:
        cure = "; --quantize finds attacks that survive it" if counts["undone_by_png"] else ""
        yield f"As 8-bit PNG: rounding undoes {counts['undone_by_png']} of {counts['broken']} attacks{cure}."
    if counts["png_outside_ball"]:
        yield (
            f"As 8-bit PNG: rounding carries {counts['png_outside_ball']} of {images} out of the eps ball; "
            "--quantize keeps them inside."
        )
