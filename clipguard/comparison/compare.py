"""`clipguard compare`: BASE and CANDIDATE, of which models are measured first, are compared image by image."""

from __future__ import annotations

from collections.abc import Callable

from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.result import BenchResult
from clipguard.comparison.inputs import Inputs
from clipguard.comparison.paired_cells import compare_results
from clipguard.comparison.result import Comparison
from clipguard.comparison.rules import Rules
from clipguard.comparison.sequential import compare_in_batches
from clipguard.core.progress import Progress, Silent


def run_comparison(
    inputs: Inputs,
    rules: Rules,
    measure: Callable[[BenchPlan], BenchResult],
    *,
    first: int | None = None,
    force: bool = False,
    keep: Callable[[BenchResult], object] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure the models among the inputs, and compare.

    Args:
        inputs: BASE and CANDIDATE as they were named (`read_inputs`).
        rules: what counts as a regression.
        measure: benches a plan.
        first: images a data set of the first of several batches, if the comparison is to stop when its verdict is
            settled; None: all images at once.
        force: compare the images they share where they are not like for like.
        keep: is given what was measured, as one result, once it is whole.
        progress: is told of the images that are read for batches.

    Raises:
        ClipguardError: for what cannot be run, and for results that cannot be compared.
    """
    if first is not None:
        comparison, measured = compare_in_batches(inputs, rules, measure, first, force, progress or Silent())
        if keep:
            keep(measured)
        return comparison
    if inputs.plan is None:
        return compare_results(*inputs.results(None), rules, force=force)
    measured = measure(inputs.plan)
    if keep:  # before they are compared: they may not be comparable
        keep(measured)
    return compare_results(*inputs.results(measured), rules, force=force)
