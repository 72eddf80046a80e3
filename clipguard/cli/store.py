"""`clipguard store ls|verify|gc|export`."""

from __future__ import annotations

import logging
import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clipguard.cli.console.terminal import echo, echo_data
from clipguard.cli.options import DEFAULT_STORE, configurable
from clipguard.core.errors import ClipguardError

EXAMPLES = """
**Examples**

`clipguard store ls` — what is in runs/store

`clipguard store verify` — read all of it; exit code 1 if anything is damaged

`clipguard store gc` — merge small files

`clipguard store gc --older-than 90d --model 'local-dir:runs/tima*' --yes` — remove results, too

`clipguard store export --out results.parquet` — all rows as one file
"""
DAMAGE = 1
log = logging.getLogger("clipguard")
app = typer.Typer(help="Look after stored results: list, check, tidy up, export (docs/store.md).", epilog=EXAMPLES)
StoreOption = Annotated[
    str, typer.Option("--store", metavar="PATH", help="Folder of stored results, or s3://BUCKET/PREFIX.")
]


class Format(str, Enum):
    """What goes to stdout."""

    table = "table"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")]


@app.command("ls")
@configurable
def list_cells(store: StoreOption = DEFAULT_STORE, output_format: FormatOption = Format.table) -> None:
    """List the cells: model, data sets, attack, eps, images, size, and when they were last written."""
    import json

    from clipguard.cli.console.render import print_rows
    from clipguard.store.maintenance import Summary, open_store, summaries

    place = open_store(store)
    found = summaries(place)
    if output_format is Format.json:
        echo_data(json.dumps([summary.to_dict() for summary in found], indent=2))
    elif found:
        print_rows(Summary.HEADINGS, [summary.cells() for summary in found])
        total = sum(summary.bytes for summary in found)
        cells = "1 cell" if len(found) == 1 else f"{len(found)} cells"
        echo(f"{cells}, {sum(s.results for s in found):,} results, {total / 1e6:.1f} MB in {place.path}")
    else:
        echo(f"{place.path} is empty.")


@app.command()
@configurable
def verify(store: StoreOption = DEFAULT_STORE, output_format: FormatOption = Format.table) -> None:
    """Read and hash everything; set aside what is damaged. Exit code 1 if anything is."""
    import json

    from clipguard.store.maintenance import check, open_store

    found = check(open_store(store))
    if output_format is Format.json:
        echo_data(json.dumps(found, indent=2))
    else:
        damaged = ", ".join(found["damaged"]) or "nothing"
        echo(f"{found['segments']} segments in {found['cells']} cells read; damaged: {damaged}.")
    if found["damaged"]:
        raise typer.Exit(DAMAGE)


@app.command()
@configurable
def gc(
    store: StoreOption = DEFAULT_STORE,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Cells last written more than this ago: 30d, 12h.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Cells of models named so; * stands for any.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="Cells of no data sets but those named so.")
    ] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="What was set aside as damaged.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them. Without it, only say what would go.")] = False,
) -> None:
    """Merge small files and remove what killed runs left; with filters and --yes, remove results as well.

    Safe beside running benchmarks: nothing that they need is lost.
    """
    from clipguard.store.maintenance import open_store, remove, select, tidy
    from clipguard.store.places import listed

    place = open_store(store)
    merged, parts = tidy(place)
    echo(f"Merged away: {merged} small files. Removed: {parts} leftovers of killed runs.")
    filtered = older_than is not None or model is not None or dataset is not None
    chosen = select(place, _seconds(older_than), model, dataset) if filtered else []
    for summary in chosen:
        echo(f"{'Removed' if yes else 'Would remove'}: {', '.join(summary.cells())}")
    files = listed(place.path / "damaged", "*") if damaged else []
    for path in files:
        echo(f"{'Removed' if yes else 'Would remove'}: {path}")
    if not chosen and not files:
        if filtered or damaged:
            echo("Nothing is of that kind.")
    elif yes:
        remove(place, [summary.cell for summary in chosen], files)
    else:
        echo("Nothing was removed: add --yes.")


@app.command()
@configurable
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="New file, .parquet or .csv.")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write all rows, each with its cell's key, as one table for pandas, R or a spreadsheet."""
    from clipguard.core.files.output import OutputFile
    from clipguard.core.records.samples import parquet_bytes
    from clipguard.store.maintenance import open_store, table

    if out.suffix not in (".parquet", ".csv"):
        raise ClipguardError(f"--out {out} must end in .parquet or .csv.")
    place = open_store(store)
    with OutputFile(out) as file:
        rows = table(place)
        file.write(parquet_bytes(rows) if out.suffix == ".parquet" else rows.to_csv(index=False).encode())
    log.info("%d rows written to %s", len(rows), out)


def _seconds(text: str | None) -> float:
    if text is None:
        return 0.0
    match = re.fullmatch(r"(\d+)([dh])", text)
    if not match:
        raise ClipguardError(f"--older-than {text!r} must be a number of days or hours: 30d, 12h.")
    return int(match[1]) * {"d": 86400.0, "h": 3600.0}[match[2]]
