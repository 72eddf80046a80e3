"""Certificates on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipguard.certification.result import CertifyResult, Share
from clipguard.certification.table import notes
from clipguard.cli.console.render import short


def print_certified(result: CertifyResult) -> None:
    """A line a model, data set and sigma on stdout: accuracies in percent over their intervals."""
    models = list(dict.fromkeys(cell.model for cell in result.cells))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("model, data set" if len(models) > 1 else f"{short(models[0])} on")
    radii = [f"r {share.radius:g}" for share in result.cells[0].certified]
    for heading in ("clean", "noisy", "abstains", *radii):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in result.cells:
        name = Text(short(cell.dataset)).append(f"\nsigma {cell.sigma:g}, n {cell.n}", style="dim")
        if len(models) > 1:
            name = Text(short(cell.model)).append("\n").append(name)
        shares = [_share(share) for share in (cell.base, cell.smoothed, *cell.certified)]
        table.add_row(name, *shares[:2], Text(str(cell.abstained)), *shares[2:])
    console = Console()
    console.print(table)
    for line in notes(result):
        console.print(Text(line))


def _share(share: Share) -> Text:
    """Whole percents of the interval, so that the table fits a terminal; the files have them exactly."""
    text = Text(f"{100 * share.accuracy:.1f}", style="bold")
    return text.append(f"\n{100 * share.ci_low:.0f}–{100 * share.ci_high:.0f}", style="not bold dim")
