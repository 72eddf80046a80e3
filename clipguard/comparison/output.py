"""A comparison for people and machines: rows of tables, Markdown, HTML, JUnit XML, GitHub annotations."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from clipguard.benchmark.results.table import heading
from clipguard.core.html_table import html_table
from clipguard.core.markdown import markdown_table

if TYPE_CHECKING:
    from clipguard.comparison.result import CellChange, Comparison, StoppingPoint
    from clipguard.comparison.rules import FailOn

HEADINGS = ("data set", "cell", "n", "base", "candidate", "change", "95 % interval", "lost", "gained", "p", "verdict")
ALIGNMENT = "ll" + "r" * 8 + "l"
MOST_LINES = 12  # of cells that a repr shows


def cell_name(cell: CellChange) -> str:
    """`clean`, or `pgd-10 4/255`."""
    return heading((cell.attack, cell.eps), cell.norm, [])


def cell_values(cell: CellChange) -> list[str]:
    """What stands under `HEADINGS`; accuracies in percent, their change in points."""
    low, high = 100 * cell.ci_low, 100 * cell.ci_high
    return [
        cell.dataset,
        cell_name(cell),
        str(cell.n),
        f"{100 * cell.base:.1f}",
        f"{100 * cell.candidate:.1f}",
        _points(cell.change),
        f"{low:+.1f} … {high:+.1f}",
        str(cell.lost),
        str(cell.gained),
        "<0.001" if cell.p_regression < 0.001 else f"{cell.p_regression:.3f}",
        cell.verdict,
    ]


def comparison_notes(comparison: Comparison) -> list[str]:
    """Lines under the table: what the numbers are, what is undecided, what was forced, and what looks wrong."""
    rules = comparison.rules
    allowed = f"{rules.max_drop:g} {'point' if rules.max_drop == 1 else 'points'}"
    notes = [
        f"{comparison.verdict.capitalize()}: {comparison.candidate} against {comparison.base}, on the same images, "
        f"max drop {allowed}.",
        *_how_it_was_decided(comparison, allowed),
    ]
    undecided = [cell for cell in comparison.cells if cell.verdict == "inconclusive"]
    if undecided:
        hardest = max(undecided, key=lambda cell: cell.n_to_decide or math.inf)
        name = f"{hardest.dataset} {cell_name(hardest)}"
        notes.append(
            f"Inconclusive: {len(undecided)} of {len(comparison.cells)}. {name}: {_what_would_decide(hardest)}."
        )
    if comparison.differences:
        notes.append(f"FORCED, not like for like: {'; '.join(comparison.differences)}.")
    return [*notes, *comparison.warnings]


def _how_it_was_decided(comparison: Comparison, allowed: str) -> list[str]:
    rules, cells, sequential = comparison.rules, len(comparison.cells), comparison.sequential
    if sequential is None:
        return [
            "Change in points of accuracy, with 95 % paired intervals. p: chance of losing this much if the true drop "
            f"were {allowed}, or none (the larger; Holm over {cells} cells); a regression at {rules.alpha:g} or less."
        ]
    return [
        f"Sequential: {stopping_point(sequential)}.",
        "Change in points of accuracy, with 95 % confidence sequences. p: chance of ever losing this much if the true "
        f"drop were {allowed} (1 / e-value, adjusted for {cells} cells); a regression at {rules.alpha:g} or less.",
    ]


def stopping_point(sequential: StoppingPoint) -> str:
    """`stopped at 75 of 200 images (62 % saved), looked at 50, 75 a data set`: images of all data sets."""
    n, of = sum(sequential["n"].values()), sum(sequential["of"].values())
    taken = (
        f"stopped at {n:,} of {of:,} images ({100 * sequential['saved']:.0f} % saved)"
        if n < of
        else f"all {n:,} images"
    )
    return f"{taken}, looked at {', '.join(f'{look:,}' for look in sequential['looks'])} a data set"


def comparison_markdown(comparison: Comparison) -> str:
    """A table to post under a pull request."""
    rows = []
    for cell in comparison.cells:
        *values, verdict = cell_values(cell)
        rows.append([*values, f"**{verdict}**" if verdict == "regression" else verdict])
    lines = markdown_table(HEADINGS, rows, ALIGNMENT)
    return "\n".join([*lines, "", "\n\n".join(comparison_notes(comparison))]) + "\n"


def comparison_html(comparison: Comparison) -> str:
    """The same for a notebook."""
    return html_table(HEADINGS, map(cell_values, comparison.cells), ALIGNMENT, comparison_notes(comparison))


def comparison_lines(comparison: Comparison) -> list[str]:
    """The same for a prompt: the verdict, and a line for each cell."""
    lines = [
        f"{cell.dataset} {cell_name(cell)}, n {cell.n}: {100 * cell.base:.1f} -> {100 * cell.candidate:.1f} "
        f"({_points(cell.change)} points, 95 % interval {100 * cell.ci_low:+.1f} to {100 * cell.ci_high:+.1f}): "
        f"{cell.verdict}"
        for cell in comparison.cells
    ]
    more = [f"... and {len(lines) - MOST_LINES} cells more"] if len(lines) > MOST_LINES else []
    return [comparison_notes(comparison)[0], *lines[:MOST_LINES], *more]


def describe_cell(cell: CellChange) -> str:
    """One line on a cell, for a log."""
    text = (
        f"accuracy {100 * cell.base:.1f} % -> {100 * cell.candidate:.1f} % ({_points(cell.change)} points, "
        f"95 % interval {100 * cell.ci_low:+.1f} to {100 * cell.ci_high:+.1f}), {cell.lost} lost and {cell.gained} "
        f"gained of {cell.n} images, p {cell.p_regression:.3g}: {cell.verdict}"
    )
    return f"{text}; {_what_would_decide(cell)}" if cell.verdict == "inconclusive" else text


def to_junit(comparison: Comparison, fail_on: FailOn) -> bytes:
    """A JUnit XML file: a test a cell, failed as `fail_on` says; else inconclusive ones are skipped.

    It has every element and attribute that Ant's schema asks for (windyroad's JUnit.xsd), so that all readers take it.
    """
    failed = comparison.failed(fail_on)
    skipped = [c for c in comparison.cells if c.verdict == "inconclusive" and c not in failed]
    counts = {"tests": len(comparison.cells), "failures": len(failed), "errors": 0, "skipped": len(skipped), "time": 0}
    suites = ET.Element("testsuites")
    suite = ET.SubElement(
        suites,
        "testsuite",
        {name: str(count) for name, count in counts.items()},
        name="clipguard compare",
        package="clipguard",
        id="0",
        hostname="localhost",
        timestamp=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S}",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(comparison, fail_on).items():
        ET.SubElement(properties, "property", name=name, value=value)
    for cell in comparison.cells:
        case = ET.SubElement(suite, "testcase", classname=cell.dataset, name=cell_name(cell), time="0")
        if cell in failed:
            ET.SubElement(case, "failure", type=cell.verdict, message=describe_cell(cell))
        elif cell in skipped:
            ET.SubElement(case, "skipped", message=describe_cell(cell))
    ET.SubElement(suite, "system-out").text = "\n".join(comparison_notes(comparison))
    ET.SubElement(suite, "system-err")
    ET.indent(suites)
    return bytes(ET.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def github_annotations(comparison: Comparison, fail_on: FailOn) -> list[str]:
    """Workflow commands: an error for each failed cell, a warning for each inconclusive one and for what was forced."""
    failed = comparison.failed(fail_on)
    lines = [
        _annotation("error" if cell in failed else "warning", f"{cell.dataset} {cell_name(cell)}", describe_cell(cell))
        for cell in comparison.cells
        if cell in failed or cell.verdict == "inconclusive"
    ]
    forced = [_annotation("warning", "not like for like", text) for text in comparison.differences]
    return [*lines, *forced]


def _properties(comparison: Comparison, fail_on: FailOn) -> dict[str, str]:
    rules = comparison.rules
    return {
        "base": comparison.base,
        "candidate": comparison.candidate,
        "max-drop": f"{rules.max_drop:g}",
        "alpha": f"{rules.alpha:g}",
        "fail-on": fail_on,
        "verdict": comparison.verdict,
    } | ({"sequential": stopping_point(comparison.sequential)} if comparison.sequential else {})


def _annotation(kind: str, title: str, message: str) -> str:
    """A workflow command, escaped as GitHub's toolkit does (actions/toolkit, core/src/command.ts)."""
    escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title=clipguard compare%3A {name}::{escaped}"


def _points(change: float) -> str:
    return f"{100 * change:+.1f}"


def _what_would_decide(cell: CellChange) -> str:
    """How many images would tell, at the rates seen, and what these can show."""
    if cell.n_to_decide:
        text = f"about {cell.n_to_decide:,} images would decide if the rates seen here are the true ones"
    else:
        text = "the drop is too close to the one allowed for any number of images"
    drop = cell.detectable_drop
    return text if drop is None else f"{text}; with {cell.n}, a drop of {100 * drop:.1f} points would show"
