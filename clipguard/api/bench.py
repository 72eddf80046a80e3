"""`clipguard.bench` and `clipguard.compare`: runs and comparisons from Python."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clipguard.benchmark.protocols import as_names, make_plan
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.runner import bench as run_plan
from clipguard.comparison.compare import METRICS, Comparison, Rules, compare_results
from clipguard.comparison.inputs import find_sides
from clipguard.comparison.sequential import FIRST, compare_in_batches
from clipguard.core.checking import check_type
from clipguard.store.store import Store


def bench(
    models: str | Sequence[str] = "tiny",
    datasets: str | Sequence[str] = (),
    eps: str | float | Sequence[str | float] = (),
    attacks: str | Sequence[str] = (),
    *,
    protocol: str | None = None,
    store: str | Path | None = None,
    probes: bool = True,
    **options: Any,
) -> BenchResult:
    """Clean and robust accuracy of every model on every data set, under every attack at every eps.

    Without data sets: the protocol's, else the embedded ones. `eps` as on the command line (`"1,4,8"`) or in numbers
    (`[1, 4, 8]`), in units of 1/255 for linf. One name may stand for a list of one. `options` are the other fields of
    `BenchPlan`, by name; whatever is given wins over the protocol.
    What the folder `store` holds is not computed again, and what is computed goes there (docs/store.md).
    `probes`: also the sanity checks that take passes of their own (docs/doctor.md).
    Raises ClipguardError for anything that cannot be run.
    """
    if given := as_names("attack", attacks):
        options["attacks"] = given
    place = _open(store)
    return run_plan(make_plan(models, datasets, protocol=protocol, eps=eps, **options), store=place, probes=probes)


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
    **options: Any,
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
    rules = Rules(max_drop, alpha, as_names("metric", metrics))
    measure = partial(run_plan, store=_open(store), probes=probes)
    sides = find_sides(str(base), str(candidate), options)
    if sequential:
        return compare_in_batches(sides, rules, measure, first=first, force=force)[0]
    return compare_results(*sides.fill(measure(sides.plan) if sides.plan else None), rules, force=force)


def _open(store: str | Path | None) -> Store | None:
    check_type("store", store, str | Path | None)
    return None if store is None else Store(Path(store))
