"""`clipguard.plan`: what a run would take, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from clipguard.api.bench import open_store
from clipguard.api.objects.kinds import AttackLike, Data, Model
from clipguard.api.objects.named import Named
from clipguard.api.options import BenchOptions, Eps
from clipguard.benchmark.planning.estimate import Estimate
from clipguard.benchmark.planning.planner import plan_run
from clipguard.benchmark.planning.question import Question
from clipguard.benchmark.protocols import make_plan
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
    given: dict[str, Any] = dict(options)
    if eps is not None and not (isinstance(eps, (list, tuple)) and not eps):
        given["eps"] = eps
    if named.attacks:  # a text is taken apart at commas
        given["attacks"] = named.attacks
    check_type("`probes`", probes, bool)
    place = open_store(store, named.objects)
    run = make_plan(named.models, named.datasets, **given)
    return plan_run(run, Question(price, pilot), store=place, probes=probes, objects=named.objects)
