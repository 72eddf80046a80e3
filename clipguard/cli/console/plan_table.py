"""What a run would take, on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipguard.benchmark.planning.estimate import Estimate, Span, Work
from clipguard.cli.console.render import short
from clipguard.finetuning.planning import TrainingEstimate

UNITS = ((86400 * 3, "days", 86400), (3600 * 2, "h", 3600), (120, "min", 60))  # from how many seconds on, name, seconds


def duration(seconds: float) -> str:
    """In a unit that suits: `0.4 s`, `35 s`, `12 min`, `3.4 h`."""
    for least, name, unit in UNITS:
        if seconds >= least:
            return f"{seconds / unit:.{0 if name == 'min' else 1}f} {name}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def count(number: float) -> str:
    """With separators."""
    return f"{number:,.0f}"


def print_estimate(estimate: Estimate, kept: bool) -> None:
    """A line a model, data set and attack, and what it all comes to, on stdout; `kept`: the pilots' results are."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    several = len({work.model for work in estimate.work}) > 1
    headings = [*(["model"] if several else []), "data set", "attack"]
    for name in headings:
        table.add_column(name)
    for name in ("stored", "passes", "at least", "at most", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for work in estimate.work:
        table.add_row(*_row(work, several))
    console = Console()
    console.print(table)
    for line in estimate_lines(estimate, kept):
        console.print(Text(line))


def _row(work: Work, several: bool) -> list[Text]:
    names = [*([work.model] if several else []), work.dataset, work.attack]
    passes, seconds = work.passes, work.seconds
    numbers = (
        f"{count(work.stored)} of {count(work.asked)}",
        "–" if passes.expected is None else count(passes.expected),
        count(passes.least),
        count(passes.most),
        "–" if seconds.expected is None else duration(seconds.expected),
    )
    return [Text(short(name)) for name in names] + [Text(number) for number in numbers]


def estimate_lines(estimate: Estimate, kept: bool) -> Iterator[str]:
    """What it comes to, in sentences."""
    stored, asked = (sum(getattr(work, name) for work in estimate.work) for name in ("stored", "asked"))
    yield (
        f"{count(estimate.cells)} cells, {count(estimate.images)} images; the store has {count(stored)} of "
        f"{count(asked)} image results."
    )
    yield f"Forward passes, in images: {_span(estimate.passes, count)}."
    if estimate.defense is not None:
        yield (
            "They are of the model inside the defence: all draws, votes and steps of its own, and the black images "
            "that fill up its passes. What one look takes was measured on few images, so the bounds are no promise."
        )
    workers = "1 worker" if estimate.workers == 1 else f"{estimate.workers} workers"
    device = estimate.machine.get("gpu", estimate.machine["device"])
    setup = duration(estimate.setup_seconds)
    wall = _span(estimate.wall_seconds, duration)
    yield f"Time with {workers} like this one ({device}): {wall}; {setup} of it before the first pass."
    if estimate.cost is not None:
        yield f"Cost at {estimate.price:g} a worker and hour: {_span(estimate.cost, lambda value: f'{value:,.2f}')}."
    if estimate.memory:
        rows = f", with {estimate.batch_size} rows a pass" if estimate.batch_size else ""
        yield f"Memory of a worker{rows}: {_memory(estimate.memory)}."
    if estimate.pilot["images"]:
        kept_in = "; their results are in the store" if kept else ""
        yield (
            f"The estimate is from {count(estimate.pilot['images'])} images that were attacked in "
            f"{duration(estimate.pilot['seconds'])}{kept_in}."
        )


def _span(span: Span, show: Callable[[float], str]) -> str:
    between = f"at least {show(span.least)}, at most {show(span.most)}"
    return between if span.expected is None else f"{show(span.expected)} expected, {between}"


def _memory(memory: Mapping[str, float | None]) -> str:
    shown = {name: f"{mib / 1024:.1f} GiB" for name, mib in memory.items() if mib is not None}
    return shown.get("host", "unknown") + (f", {shown['gpu']} of the GPU" if "gpu" in shown else "")


def print_training_estimate(estimate: TrainingEstimate) -> None:
    """What a fine-tuning run would take, in sentences on stdout."""
    speed, validations = estimate.steps_per_second, estimate.validations
    pace = f"{speed:.1f} a second" if speed >= 1 else f"{1 / speed:.1f} s each"
    lines = [
        f"{count(estimate.steps)} steps of {count(estimate.images_per_step)} images, {pace}: "
        f"{duration(estimate.training_seconds)}.",
        f"{validations} validations of {duration(estimate.validation_seconds)}, and "
        f"{duration(estimate.setup_seconds)} before the first step.",
        f"In all {duration(estimate.seconds)} on {estimate.machine.get('gpu', estimate.machine['device'])}, without "
        "the scores before and after.",
        f"Memory: {_memory(estimate.memory)}.",
    ]
    if estimate.cost is not None:
        lines.append(f"Cost at {estimate.price:g} an hour: {estimate.cost:,.2f}.")
    console = Console()
    for line in lines:
        console.print(Text(line))
