"""`clipguard.compare`: what changed between two results or models, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from clipguard.api.bench import open_store
from clipguard.api.objects.kinds import Model
from clipguard.api.objects.named import Named
from clipguard.api.options import CompareOptions
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.runner import run_plan
from clipguard.comparison.compare import run_comparison
from clipguard.comparison.inputs import names_result, read_inputs
from clipguard.comparison.result import Comparison
from clipguard.comparison.rules import METRICS, Rules
from clipguard.comparison.sequential import FIRST, check_first
from clipguard.core.checking import check_type
from clipguard.core.settings import settings_of
from clipguard.models.loading import LoadedModel


def compare(
    base: Model | BenchResult,
    candidate: Model | BenchResult,
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
    """What changed from `base` to `candidate`, image by image. docs/compare.md says what a regression is.

    Args:
        base: what `bench` gave, a result folder, its `results.json`, or a model as `bench` takes it, which is benched
            as the other side was.
        candidate: the same.
        max_drop: points of accuracy that a cell may lose, in [0, 100).
        alpha: chance of a false alarm in any cell, in (0, 0.5).
        metrics: cells that count: clean, robust, average.
        sequential: for models: measure growing batches until the verdict is settled.
        first: images a data set in the first batch.
        force: compare what both have, even if not like for like.
        store: as for `bench`.
        probes: as for `bench`.
        options: for two models, the settings of `bench` by name, `datasets` and `attacks` among them. Next to a result
            of objects in memory these are given again as `datasets` and `attacks`.

    Raises:
        ClipguardError: for what cannot be read or run, and for results that are not like for like.
    """
    for name, value in (("sequential", sequential), ("force", force), ("probes", probes)):
        check_type(f"`{name}`", value, bool)
    check_first(first)
    for side, given in (("base", base), ("candidate", candidate)):
        if not isinstance(given, (BenchResult, LoadedModel, nn.Module)):
            check_type(f"{side}, a result or a model's name,", given, str | Path)
    rules = Rules(max_drop, alpha, settings_of(Rules)["metrics"].read(metrics))
    given_sides, settings = [base, candidate], dict[str, Any](options)
    models = [side for side in given_sides if not _is_result(side)]
    named = Named(models, options.get("datasets"), options.get("attacks"), options)
    settings |= {name: getattr(named, name) for name in ("datasets", "attacks") if name in options}
    names = iter(named.models)
    sides = [_spell(side) if _is_result(side) else str(next(names)) for side in given_sides]
    inputs = read_inputs(sides[0], sides[1], settings, named.objects)
    measure = partial(run_plan, store=open_store(store, named.objects), probes=probes, objects=named.objects)
    return run_comparison(inputs, rules, measure, first=first if sequential else None, force=force)


def _is_result(side: Model | BenchResult) -> bool:
    return isinstance(side, BenchResult) or (isinstance(side, (str, Path)) and names_result(str(side)))


def _spell(result: Any) -> str | BenchResult:
    return result if isinstance(result, BenchResult) else str(result)
