"""`clipguard inspect`."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from clipguard.cli.console.flags import in_flags
from clipguard.cli.console.terminal import echo, echo_data

if TYPE_CHECKING:
    from clipguard.models.inspection import Inspection

EXAMPLES = """
**Examples**

`clipguard inspect model_best.pth.tar`

`clipguard inspect local-dir:runs/tima --format json`
"""


class Format(str, Enum):
    """What goes to stdout."""

    table = "table"
    json = "json"


def inspect(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A weight file, local-dir:FOLDER or hf-hub:ORG/REPO.")],
    output_format: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.table,
) -> None:
    """Say what a checkpoint is (format, architecture, towers, training) and how to bench it."""
    from clipguard.cli import app
    from clipguard.models.inspection import inspect_model

    found = inspect_model(source)
    found = replace(found, needs=in_flags(found.needs, app))
    if output_format is Format.json:
        echo_data(json.dumps(found.to_dict(), indent=2, allow_nan=False))
        return
    rows = _rows(found)
    width = max(map(len, rows))
    for key, value in rows.items():
        echo(f"{key:<{width}}  {value}")


def _rows(found: Inspection) -> dict[str, str]:
    """What is known, for people."""
    dtypes = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in found.dtypes.items())
    rows = {
        "file": f"{found.path} ({found.bytes / 1e6:.1f} MB, {found.container})",
        "sha256": found.sha256 + (f", the published {found.release}" if found.release else ""),
        "format": found.format + (f", under {found.entry}" if found.entry else ""),
        "towers": f"{' and '.join(found.towers) or 'none: an adapter'}, {found.parameters / 1e6:.1f} M parameters",
        "dtypes": dtypes,
        "architecture": " or ".join(found.architectures) or ("none that open_clip knows" if found.towers else ""),
        "activation": found.activation,
        "base": found.base or "",
        "notes": "; ".join(found.notes),
        "training": ", ".join(f"{key} {json.dumps(value)}" for key, value in found.training.items()),
        "bench it": found.command,
        "needs": found.needs,
    }
    return {key: value for key, value in rows.items() if value}
