"""`clipguard.compare`: what changed between two results or models, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from typing_extensions import Unpack

from clipguard.api.bench import open_store
from clipguard.api.options import CompareOptions
from clipguard.benchmark.runner import run_plan
from clipguard.comparison.compare import run_comparison
from clipguard.comparison.inputs import read_inputs
from clipguard.comparison.result import Comparison
from clipguard.comparison.rules import METRICS, Rules
from clipguard.comparison.sequential import FIRST
from clipguard.core.checking import check_type
from clipguard.core.settings import settings_of


def compare(
    base: str | Path,
    candidate: str | Path,
    *,
    max_drop: float = 1.0,
    alpha: float = 0.05,
    metrics: str | Sequence[str] = METRICS,
    sequential: bool = False,
    first: int = FIRST,
    force: bool = False,
    store: str | Path | None = None,
    probes: bool = True,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """What changed from `base` to `candidate`, image by image: result folders, `results.json` files or models.

    A model is benched as the other side was; for two models, `options` are the fields of `BenchPlan` by name, eps as on
    the command line; `store` and `probes` are those of `bench`. `max_drop` is in points of accuracy. `sequential`, for
    models: in batches, of `first` images a data set to begin with, until the verdict is settled. docs/compare.md says
    what a regression is.
    Raises ClipguardError for what cannot be read or run, and for results that are not like for like unless `force`.
    """
    for side, given in (("base", base), ("candidate", candidate)):
        check_type(f"{side}, a result or a model's name,", given, str | Path)
    rules = Rules(max_drop, alpha, settings_of(Rules)["metrics"].read(metrics))
    measure = partial(run_plan, store=open_store(store), probes=probes)
    inputs = read_inputs(str(base), str(candidate), options)
    return run_comparison(inputs, rules, measure, first=first if sequential else None, force=force)
