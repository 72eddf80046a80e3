"""BASE and CANDIDATE as they are named: results to read, and models to measure as the other was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipguard.benchmark.checks.findings import prediction_entries
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.results.result import RESULTS, BenchResult
from clipguard.comparison.comparability import model_name
from clipguard.core.errors import ClipguardError, ModelError, ResultError
from clipguard.data.dataset import MEMORY
from clipguard.models import parse_source
from clipguard.sanity.entries import say

WHERE_IT_RUNS = ("device", "batch_size", "workers", "ray", "decoders")  # fields of a plan that change no outcome


@dataclass(frozen=True)
class Inputs:
    """What is to be compared.

    Attributes:
        names: as typed, by "BASE" and "CANDIDATE".
        read: those of the two that are results.
        plan: how to measure the models; None if there are none.
        objects: what names of the plan stand for.
    """

    names: Mapping[str, str]
    read: Mapping[str, BenchResult]
    plan: BenchPlan | None
    objects: Objects = field(default_factory=Objects)

    def results(self, measured: BenchResult | None) -> tuple[BenchResult, BenchResult]:
        """The results of BASE and CANDIDATE: those of models are in what was measured; None if there are no models."""
        results = dict(self.read)
        if measured is not None:
            shown = self.plan.shown if self.plan else str
            results |= {side: measured.only(shown(name)) for side, name in self.names.items() if side not in results}
        return results["BASE"], results["CANDIDATE"]


def read_inputs(
    base: str | BenchResult, candidate: str | BenchResult, settings: Mapping[str, Any], objects: Objects | None = None
) -> Inputs:
    """Read results, and plan how to measure models: as the other side was.

    Args:
        base: a result, a folder of `clipguard bench`, its results.json, or a model.
        candidate: the same.
        settings: of a plan for two models, by name. Next to a result only `device` and `batch_size` may be given, and
            as `datasets` and `attacks` the objects that it was measured on.
        objects: what names stand for.

    Raises:
        ClipguardError: for what is neither, and for settings that have nothing to act on.
    """
    objects = objects or Objects()
    sides = {"BASE": base, "CANDIDATE": candidate}
    results = {side: _read(given, objects) if isinstance(given, str) else given for side, given in sides.items()}
    names = {side: given if isinstance(given, str) else side for side, given in sides.items()}
    read = {side: result for side, result in results.items() if result is not None}
    missing = [names[side] for side in names if side not in read]
    again = _given_again(read, settings) if missing else []
    settings = {name: value for name, value in settings.items() if name not in again}
    unused = sorted(name for name in settings if read and (name not in WHERE_IT_RUNS or not missing))
    if unused:
        named = ", ".join(f"`{name}`" for name in unused)
        measured = f"{' and '.join(read)} {'is' if len(read) == 1 else 'are'} measured already"
        raise ResultError(f"{named} is for models to bench; {measured}. Leave it out.")
    for side, result in read.items():
        model_name(result, side)
        say(prediction_entries(result), undecided=False)
    return Inputs(names, read, _plan(missing, read, settings, objects) if missing else None, objects)


def names_result(name: str) -> bool:
    """Whether a text is the path of a result, and no model."""
    path = Path(name).expanduser()
    return (path / RESULTS).is_file() or path.suffix == ".json"


def _read(name: str, objects: Objects) -> BenchResult | None:
    """The result at a path, or None for a model."""
    if name in objects.models:
        return None
    if names_result(name):
        return BenchResult.load(Path(name).expanduser())
    try:
        parse_source(name)
    except ModelError as error:
        raise ResultError(f"{name} holds no {RESULTS}, and is no model: {error}") from error
    return None


def _given_again(read: Mapping[str, BenchResult], settings: Mapping[str, Any]) -> list[str]:
    """Of `datasets` and `attacks`, those that are the objects in memory that a result was measured on."""
    known = {name for result in read.values() for name in result.run.get("in_memory", [])}
    given = {name: settings.get(name) for name in ("datasets", "attacks")}
    return [name for name, value in given.items() if value and isinstance(value, list) and known.issuperset(value)]


def _plan(
    models: list[str], read: Mapping[str, BenchResult], settings: Mapping[str, Any], objects: Objects
) -> BenchPlan:
    models = list(dict.fromkeys(models))
    if not read:
        return make_plan(models, **settings)
    ((side, result),) = read.items()
    if "plan" not in result.run:
        raise ResultError(f"{side} is of an older clipguard, which did not keep its plan: bench both again.")
    plan = BenchPlan.from_dict(result.run["plan"], models)
    for kind, gone in (("datasets", _gone_data(result, objects)), ("attacks", _gone_attacks(result, objects))):
        if gone:
            what = f"{side} was measured on {', '.join(gone)} in memory"
            raise ResultError(f"{what}: give the same from Python, as `{kind}` of `clipguard.compare`.")
    return replace(plan, **settings)


def _gone_data(result: BenchResult, objects: Objects) -> list[str]:
    """Data sets that were arrays or tables, which no name opens."""
    known = result.run["datasets"]
    names = [name for name in result.run.get("in_memory", []) if name in known and name not in objects.datasets]
    return [name for name in names if known[name]["source"] == MEMORY]


def _gone_attacks(result: BenchResult, objects: Objects) -> list[str]:
    """Attacks in memory that no name or file says."""
    in_memory = result.run.get("in_memory", [])
    names = [name for name in result.run["plan"]["attacks"] if name in in_memory and name not in objects.recipes]
    return [name for name in names if not _can_open(name)]


def _can_open(attack: str) -> bool:
    try:
        open_recipe(attack)
    except ClipguardError:
        return False
    return True
