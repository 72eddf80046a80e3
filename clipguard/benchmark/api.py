"""`clipguard.bench`: a run from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results import BenchResult
from clipguard.benchmark.run import bench as run_plan


def bench(
    models: Sequence[str] = ("tiny",),
    datasets: Sequence[str] = (),
    eps: Sequence[str] = (),
    attacks: Sequence[str] = (),
    *,
    protocol: str | None = None,
    **options: Any,
) -> BenchResult:
    """Clean and robust accuracy of every model on every data set, under every attack at every eps.

    Without data sets: the protocol's, else the embedded ones. `eps` as on the command line (`["1,4,8"]`, units of
    1/255 for linf). `options` are the other fields of `BenchPlan`, by name; whatever is given wins over the protocol.
    Raises ClipguardError for anything that cannot be run.
    """
    if attacks:
        options["attacks"] = tuple(attacks)
    if eps:
        options["eps"] = tuple(eps)
    return run_plan(make_plan(models, datasets, protocol=protocol, **options))
