"""`clipguard.bench` and `clipguard.compare`: runs and comparisons from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from clipguard.api.options import BenchOptions, Eps
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.runner import run_plan
from clipguard.core.checking import check_type
from clipguard.store.store import Store


def bench(
    models: str | Sequence[str] = "tiny",
    datasets: str | Sequence[str] = (),
    eps: Eps = (),
    attacks: str | Sequence[str] = (),
    *,
    store: str | Path | None = None,
    probes: bool = True,
    **options: Unpack[BenchOptions],
) -> BenchResult:
    """Clean and robust accuracy of every model on every data set, under every attack at every eps.

    Args:
        models: one or more, as `--model` names them.
        datasets: one or more; without any the protocol's, else the embedded ones.
        eps: a number is pixels of [0,1] (`4 / 255`), a text is as on the command line (`"4"`, `"4/255"`, `"1,4,8"`, in
            units of 1/255 for linf).
        attacks: one or more, as `--attack` names them.
        store: a folder; what it holds is not computed again, and what is computed goes there (docs/store.md).
        probes: also the sanity checks that take passes of their own (docs/doctor.md).
        options: the other settings, by name; whatever is given wins over the protocol.

    Raises:
        ClipguardError: for anything that cannot be run.
    """
    given: dict[str, Any] = dict(options)
    given |= {name: value for name, value in (("eps", eps), ("attacks", attacks)) if not _is_empty(value)}
    place = open_store(store)
    return run_plan(make_plan(models, datasets, **given), store=place, probes=probes)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and not value)


def open_store(store: str | Path | None) -> Store | None:
    """The store in a folder; None for none."""
    check_type("`store`", store, str | Path | None)
    return None if store is None else Store(Path(store))
