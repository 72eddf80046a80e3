"""`clipguard.bench`: a run from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from clipguard.api.objects.kinds import AttackLike, Data, Model
from clipguard.api.objects.named import Named
from clipguard.api.options import BenchOptions, Eps
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.runner import run_plan
from clipguard.core.checking import check_type
from clipguard.core.errors import ClipguardError
from clipguard.models.module_model import ModuleModel
from clipguard.store.store import Store


def bench(
    models: Model | Sequence[Model] = "tiny",
    datasets: Data | Sequence[Data] = (),
    eps: Eps = (),
    attacks: AttackLike | Sequence[AttackLike] = (),
    *,
    store: str | Path | None = None,
    probes: bool = True,
    **options: Unpack[BenchOptions],
) -> BenchResult:
    """Clean and robust accuracy of every model on every data set, under every attack at every eps.

    Args:
        models: one or more: names as `--model` takes them, what `load_model` gave, or modules in eval mode that map
            pixels (B, 3, H, W) in [0,1] to logits (B, classes).
        datasets: one or more: names as `--dataset` takes them, what `load_dataset` gave, a `datasets.Dataset`, or pairs
            (images, labels) or triples (images, labels, class_names) of arrays: see `dataset_of_arrays`. Without any
            the protocol's, else the embedded ones.
        eps: a number is pixels of [0,1] (`4 / 255`), a text is as on the command line (`"4"`, `"4/255"`, `"1,4,8"`, in
            units of 1/255 for linf).
        attacks: one or more: names as `--attack` takes them, attacks such as `APGD(iterations=50)`, or recipes.
        store: a folder or `s3://BUCKET/PREFIX`; what it holds is not computed again, and what is computed goes there
            (docs/store.md). Not for modules, whose code cannot be told apart.
        probes: also the sanity checks that take passes of their own (docs/doctor.md).
        options: the other settings, by name; whatever is given wins over the protocol.

    Raises:
        ClipguardError: for anything that cannot be run.
    """
    named = Named(models, datasets, attacks, options)
    check_type("`probes`", probes, bool)
    place = open_store(store, named.objects)
    return run_plan(plan_of(named, eps, options), store=place, probes=probes, objects=named.objects)


def plan_of(named: Named, eps: Eps, options: Mapping[str, Any]) -> BenchPlan:
    """The plan of what was given to `bench`. Raises ClipguardError for settings that no run could use."""
    given = dict(options)
    if eps is not None and not (isinstance(eps, (list, tuple)) and not eps):
        given["eps"] = eps
    if named.attacks:  # a text is taken apart at commas
        given["attacks"] = named.attacks
    return make_plan(named.models, named.datasets, **given)


def open_store(store: str | Path | None, objects: Objects) -> Store | None:
    """The store in a folder; None for none. Raises ClipguardError where a module would be among what is measured."""
    check_type("`store`", store, str | Path | None)
    if store is not None and any(isinstance(model, ModuleModel) for model in objects.models.values()):
        raise ClipguardError("`store` is for checkpoints: the code of a module is no part of a key. Leave it out.")
    return None if store is None else Store(store)
