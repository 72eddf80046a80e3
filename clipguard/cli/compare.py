"""`clipguard compare`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipguard.benchmark.plan import OF_DEFENSE, BenchPlan
from clipguard.cli.console.terminal import echo, echo_data
from clipguard.cli.options import STORED, pop_settings, takes
from clipguard.comparison.rules import FailOn, Rules
from clipguard.core.errors import ClipguardError
from clipguard.core.settings import setting, settings_of

if TYPE_CHECKING:
    from clipguard.benchmark.results.folder import ResultFolder
    from clipguard.benchmark.results.result import BenchResult
    from clipguard.comparison.inputs import Inputs
    from clipguard.comparison.result import Comparison

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


@dataclass(frozen=True)
class Comparing:
    """How two results are compared, and how that is told."""

    fail_on: FailOn = setting(
        "regression",
        "regression: a drop of more than --max-drop, beyond chance (exit 1); any-drop: beyond chance or not (exit 1); "
        "inconclusive: a regression (exit 1), or too few images to rule one out (exit 3).",
    )
    sequential: bool = setting(
        False,
        "For models: take images in growing batches, and stop when the verdict is settled. False alarms stay within "
        "--alpha for all looks together.",
    )
    first: int | None = setting(
        None, "With --sequential: images a data set in the first batch.", low=1, default_help="50"
    )
    force: bool = setting(False, "Compare what both have, even if not like for like.")
    format: Literal["table", "json", "md"] = setting("table", "What stdout gets.", letter="-f")
    junit: Path | None = setting(None, "Also write a JUnit XML file, a test a cell.")
    github: bool | None = setting(None, "Annotations on stderr.", default_help="on where GITHUB_ACTIONS is set")


RULES, COMPARING = settings_of(Rules), settings_of(Comparing)
MODELS_ONLY = (
    "datasets",
    "protocol",
    "data_root",
    "eps",
    "norm",
    "attacks",
    *OF_DEFENSE,
    "n_samples",
    "seed",
    "batch_size",
    "device",
    "workers",
    "ray",
    "decoders",
)
PLAN = {name: settings_of(BenchPlan)[name] for name in MODELS_ONLY}
PLAN |= {
    name: PLAN[name].but(help="For two models: as for `clipguard bench`.") for name in ("datasets", "attacks", "seed")
}
SETTINGS = RULES | COMPARING | PLAN | STORED


@takes(SETTINGS)
def compare(
    given: dict[str, Any],
    base: Annotated[str, typer.Argument(help="A folder of `clipguard bench`, its results.json, or a model.")],
    candidate: Annotated[str, typer.Argument(help="The same. A model is benched as the other side was.")],
) -> None:
    """Tell whether a model got worse than another, image by image and beyond chance; for CI."""
    from clipguard.comparison.inputs import read_inputs
    from clipguard.core.files.output import OutputFile

    how = pop_settings(given, COMPARING | STORED)
    if how["first"] is not None and not how["sequential"]:
        raise ClipguardError("`first` is for `sequential`.")
    rules = Rules(**pop_settings(given, RULES))
    report = OutputFile(how["junit"], option="--junit", replace=True) if how["junit"] else None
    comparison, fail_on = _compare(read_inputs(base, candidate, given), rules, how), how["fail_on"]
    if report:
        from clipguard.comparison.output import to_junit

        report.write(to_junit(comparison, fail_on))
    _print(comparison, how["format"])
    if os.environ.get("GITHUB_ACTIONS") == "true" if how["github"] is None else how["github"]:
        _annotate(comparison, fail_on)
    if comparison.failed("any-drop" if fail_on == "any-drop" else "regression"):
        raise typer.Exit(REGRESSION)
    if comparison.failed(fail_on):
        raise typer.Exit(INCONCLUSIVE)


def _compare(inputs: Inputs, rules: Rules, how: dict[str, Any]) -> Comparison:
    """Compare; what is measured for that goes into a new folder below runs/."""
    from clipguard.benchmark.results.folder import ResultFolder
    from clipguard.benchmark.runner import run_plan
    from clipguard.cli.console.progress import RichProgress
    from clipguard.comparison.compare import run_comparison
    from clipguard.comparison.sequential import FIRST
    from clipguard.store.store import Store

    first = (how["first"] or FIRST) if how["sequential"] else None
    if inputs.plan is None:
        return run_comparison(inputs, rules, run_plan, first=first, force=how["force"])
    with ResultFolder.by_default(inputs.plan.models[-1]) as folder, RichProgress() as progress:
        store = Store(how["store"]) if how["store"] else None
        measure = partial(run_plan, progress=progress, store=store, probes=how["probes"])
        keep = partial(_write, folder)
        return run_comparison(inputs, rules, measure, first=first, force=how["force"], keep=keep, progress=progress)


def _write(folder: ResultFolder, result: BenchResult) -> None:
    from clipguard.benchmark.results.table import to_markdown

    folder.write(result, to_markdown(result))
    log.info("Written to %s in %.0f s", folder.path, result.run["wall_seconds"])


def _print(comparison: Comparison, output_format: str) -> None:
    from clipguard.cli.console.render import print_comparison
    from clipguard.comparison.output import comparison_markdown

    if output_format == "table":
        print_comparison(comparison)
    elif output_format == "json":
        echo_data(comparison.to_json())
    else:
        echo_data(comparison_markdown(comparison))


def _annotate(comparison: Comparison, fail_on: FailOn) -> None:
    """On stderr: the runner reads commands from both streams, and stdout stays clean JSON or Markdown."""
    from clipguard.comparison.output import github_annotations

    for line in github_annotations(comparison, fail_on):
        echo(line, err=True)
