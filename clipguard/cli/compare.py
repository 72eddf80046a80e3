"""`clipguard compare`."""

from __future__ import annotations

import logging
import os
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipguard.cli import options
from clipguard.cli.console.terminal import echo, echo_data
from clipguard.cli.options import parse_batch_size, parse_n_samples, split_attacks
from clipguard.core.errors import ClipguardError

if TYPE_CHECKING:
    from clipguard.benchmark.plan import BenchPlan
    from clipguard.benchmark.results.folder import ResultFolder
    from clipguard.benchmark.results.result import BenchResult
    from clipguard.comparison.compare import Comparison, Rules
    from clipguard.comparison.inputs import Sides

EXAMPLES = """
**Examples**

`clipguard compare runs/before runs/after` — two results

`clipguard compare runs/before local-dir:runs/tuned --fail-on inconclusive` — benched as runs/before was

`clipguard compare tiny local-dir:runs/tuned -d emoji-food --attack pgd-10 --eps 4 --n-samples all`

`clipguard compare runs/before local-dir:runs/tuned --sequential --max-drop 5` — no more images than it takes

`clipguard compare base/results.json tuned/results.json --junit compare.xml --format md > comment.md`

Exit codes: 0 no regression, 1 regression (or what `--fail-on` says), 2 bad input, 3 inconclusive with
`--fail-on inconclusive`.
"""
REGRESSION, INCONCLUSIVE = 1, 3
log = logging.getLogger("clipguard")


class Format(str, Enum):
    """What goes to stdout."""

    table = "table"
    json = "json"
    md = "md"


class FailOn(str, Enum):
    """What makes the exit code other than 0."""

    regression = "regression"
    any_drop = "any-drop"
    inconclusive = "inconclusive"


def compare(
    base: Annotated[str, typer.Argument(help="A folder of `clipguard bench`, its results.json, or a model.")],
    candidate: Annotated[str, typer.Argument(help="The same. A model is benched as the other side was.")],
    max_drop: Annotated[float, typer.Option("--max-drop", help="Points of accuracy that a cell may lose.")] = 1.0,
    metric: Annotated[
        str, typer.Option(help="Cells that count: clean, robust, average (over data sets), comma-separated.")
    ] = "clean,robust,average",
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm in any cell, at most.")] = 0.05,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            "--fail-on",
            help="regression: a drop of more than --max-drop, beyond chance (exit 1); any-drop: beyond chance or not "
            "(exit 1); inconclusive: a regression (exit 1), or too few images to rule one out (exit 3).",
        ),
    ] = FailOn.regression,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="For models: take images in growing batches, and stop when the verdict is settled. False alarms stay "
            "within --alpha for all looks together.",
        ),
    ] = False,
    first: Annotated[
        int | None, typer.Option(help="With --sequential: images a data set in the first batch. Default: 50.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare what both have, even if not like for like.")] = False,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="For two models: as for `clipguard bench`.")
    ] = None,
    protocol: options.Protocol = None,
    data_root: options.DataRoot = None,
    eps: options.Eps = None,
    norm: options.Norm = None,
    attack: Annotated[
        list[str] | None, typer.Option("--attack", "-a", help="For two models: as for `clipguard bench`.")
    ] = None,
    n_samples: Annotated[
        str | None, typer.Option("--n-samples", "-n", help="For two models: images a data set, or all. Default: 200.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For two models: of the subset and of every attack.")] = None,
    batch_size: Annotated[str | None, typer.Option("--batch-size", help="As for `clipguard bench`.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    store: options.Store = options.DEFAULT_STORE,
    no_store: options.NoStore = False,
    probes: options.Probes = True,
    output_format: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.table,
    junit: Annotated[Path | None, typer.Option(help="Also write a JUnit XML file, a test a cell.")] = None,
    github: Annotated[
        bool | None,
        typer.Option("--github/--no-github", help="Annotations on stderr. Default: on where GITHUB_ACTIONS is set."),
    ] = None,
) -> None:
    """Tell whether a model got worse than another, image by image and beyond chance; for CI."""
    from clipguard.comparison.compare import Rules, compare_results
    from clipguard.comparison.inputs import find_sides
    from clipguard.core.output import OutputFile

    if first is not None and not sequential:
        raise ClipguardError("--first is for --sequential.")
    rules = Rules(max_drop, alpha, tuple(name.strip() for name in metric.split(",")))
    asked = options.given(
        datasets=tuple(dataset) if dataset else None,
        protocol=protocol,
        data_root=data_root,
        eps=eps,
        norm=norm,
        attacks=tuple(split_attacks(attack)) if attack else None,
        seed=seed,
        batch_size=parse_batch_size(batch_size) if batch_size else None,
        device=device,
    )
    if n_samples is not None:
        asked["n_samples"] = parse_n_samples(n_samples)
    report = OutputFile(junit, option="--junit", replace=True) if junit else None
    place = None if no_store else store
    sides = find_sides(base, candidate, asked)
    if sequential:
        comparison = _compare_in_batches(sides, rules, first, force, place, probes)
    else:
        found = sides.fill(_measure(sides.plan, place, probes) if sides.plan else None)
        comparison = compare_results(*found, rules, force=force)
    if report:
        from clipguard.comparison.output import to_junit

        report.write(to_junit(comparison, fail_on.value))
    _print(comparison, output_format)
    if os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github:
        _annotate(comparison, fail_on)
    if comparison.failed("any-drop" if fail_on is FailOn.any_drop else "regression"):
        raise typer.Exit(REGRESSION)
    if comparison.failed(fail_on.value):
        raise typer.Exit(INCONCLUSIVE)


def _measure(plan: BenchPlan, store: Path | None, probes: bool) -> BenchResult:
    """Bench models into a new folder below runs/."""
    from clipguard.benchmark.results.folder import ResultFolder
    from clipguard.benchmark.runner import bench
    from clipguard.cli.console.progress import RichProgress
    from clipguard.store.store import Store

    with ResultFolder.by_default(plan.models[-1]) as folder, RichProgress() as progress:
        result = bench(plan, progress=progress, store=Store(store) if store else None, probes=probes)
        _write(result, folder)
    return result


def _compare_in_batches(
    sides: Sides, rules: Rules, first: int | None, force: bool, store: Path | None, probes: bool
) -> Comparison:
    """The same for `--sequential`: one folder, of the images that were needed."""
    from clipguard.benchmark.results.folder import ResultFolder
    from clipguard.benchmark.runner import bench
    from clipguard.cli.console.progress import RichProgress
    from clipguard.comparison.sequential import FIRST, compare_in_batches
    from clipguard.store.store import Store

    name = sides.plan.models[-1] if sides.plan else ""
    with ResultFolder.by_default(name) as folder, RichProgress() as progress:
        measure = partial(bench, progress=progress, store=Store(store) if store else None, probes=probes)
        first = FIRST if first is None else first
        comparison, result = compare_in_batches(sides, rules, measure, first=first, force=force, progress=progress)
        _write(result, folder)
    return comparison


def _write(result: BenchResult, folder: ResultFolder) -> None:
    from clipguard.benchmark.results.table import to_markdown

    folder.write(result, to_markdown(result))
    log.info("Written to %s in %.0f s", folder.path, result.run["wall_seconds"])


def _print(comparison: Comparison, output_format: Format) -> None:
    from clipguard.cli.console.render import print_comparison
    from clipguard.comparison.output import comparison_markdown

    if output_format is Format.table:
        print_comparison(comparison)
    elif output_format is Format.json:
        echo_data(comparison.to_json())
    else:
        echo_data(comparison_markdown(comparison))


def _annotate(comparison: Comparison, fail_on: FailOn) -> None:
    """On stderr: the runner reads commands from both streams, and stdout stays clean JSON or Markdown."""
    from clipguard.comparison.output import github_annotations

    for line in github_annotations(comparison, fail_on.value):
        echo(line, err=True)
