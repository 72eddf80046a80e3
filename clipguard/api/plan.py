"""`clipguard.plan`: what a run would take, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Unpack

from clipguard.api.bench import open_store, plan_of
from clipguard.api.objects.kinds import AttackLike, Data, Model
from clipguard.api.objects.named import Named
from clipguard.api.options import BenchOptions, Eps
from clipguard.benchmark.planning.estimate import Estimate
from clipguard.benchmark.planning.planner import plan_run
from clipguard.benchmark.planning.question import Question
from clipguard.core.checking import check_type


def plan(
    models: Model | Sequence[Model] = "tiny",
    datasets: Data | Sequence[Data] = (),
    eps: Eps = (),
    attacks: AttackLike | Sequence[AttackLike] = (),
    *,
    store: str | Path | None = None,
    probes: bool = True,
    price: float | None = None,
    pilot: int = 16,
    **options: Unpack[BenchOptions],
) -> Estimate:
    """What `clipguard.bench` would take with the same arguments: passes, seconds, memory and money (docs/planning.md).

    Args:
        models, datasets, eps, attacks, probes, options: as of `bench`.
        store: as of `bench`; the pilots' results go there.
        price: of one worker an hour.
        pilot: images of each data set that are attacked for the estimate; 0: bounds without an estimate.

    Raises:
        ClipguardError: for anything that cannot be run or planned.
    """
    named = Named(models, datasets, attacks, options)
    check_type("`probes`", probes, bool)
    place, run = open_store(store, named.objects), plan_of(named, eps, options)
    return plan_run(run, Question(price, pilot), store=place, probes=probes, objects=named.objects)
