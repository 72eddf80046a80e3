"""`clipguard.bench`: a run from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipguard.benchmark.plan import DEFAULT_ATTACK, DEFAULT_EPS, BenchPlan, parse_eps
from clipguard.benchmark.results import BenchResult
from clipguard.benchmark.run import bench as run_plan
from clipguard.data import list_datasets


def bench(
    models: Sequence[str] = ("tiny",),
    datasets: Sequence[str] = (),
    eps: Sequence[str] = (),
    attacks: Sequence[str] = (DEFAULT_ATTACK,),
    **options: Any,
) -> BenchResult:
    """Clean and robust accuracy of every model on every data set, under every attack at every eps.

    Without data sets: the embedded ones. `eps` as on the command line (`["1,4,8"]`, units of 1/255 for linf).
    `options` are the other fields of `BenchPlan`, by name. Raises ClipguardError for anything that cannot be run.
    """
    norm = options.get("norm", "linf")
    radii = parse_eps(list(eps) or list(DEFAULT_EPS.get(norm, ())), norm)
    names = tuple(datasets) or tuple(d.name for d in list_datasets())
    return run_plan(BenchPlan(tuple(models), names, tuple(radii), tuple(attacks), **options))
