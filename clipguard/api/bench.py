"""`clipguard.bench` and `clipguard.compare`: runs and comparisons from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipguard.benchmark.protocols import as_names, make_plan
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.runner import bench as run_plan
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


def _open(store: str | Path | None) -> Store | None:
    check_type("store", store, str | Path | None)
    return None if store is None else Store(Path(store))
