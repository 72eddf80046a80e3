"""BASE and CANDIDATE as they are named: results to read, and models to measure as the other was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipguard.benchmark.checks.findings import prediction_entries
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results.result import RESULTS, BenchResult
from clipguard.comparison.comparability import model_name
from clipguard.core.errors import ModelError, ResultError
from clipguard.models import parse_source
from clipguard.sanity.entries import say

WHERE_IT_RUNS = ("device", "batch_size")  # fields of a plan that change no outcome


@dataclass(frozen=True)
class Inputs:
    """What is to be compared.

    Attributes:
        names: as typed, by "BASE" and "CANDIDATE".
        read: those of the two that are results.
        plan: how to measure the models; None if there are none.
    """

    names: Mapping[str, str]
    read: Mapping[str, BenchResult]
    plan: BenchPlan | None

    def results(self, measured: BenchResult | None) -> tuple[BenchResult, BenchResult]:
        """The results of BASE and CANDIDATE: those of models are in what was measured; None if there are no models."""
        results = dict(self.read)
        if measured is not None:
            results |= {side: measured.only(name) for side, name in self.names.items() if side not in results}
        return results["BASE"], results["CANDIDATE"]


def read_inputs(base: str | BenchResult, candidate: str | BenchResult, settings: Mapping[str, Any]) -> Inputs:
    """Read results, and plan how to measure models: as the other side was.

    Args:
        base: a result, a folder of `clipguard bench`, its results.json, or a model.
        candidate: the same.
        settings: of a plan for two models, by name. Next to a result only `device` and `batch_size` may be given.

    Raises:
        ClipguardError: for what is neither, and for settings that have nothing to act on.
    """
    sides = {"BASE": base, "CANDIDATE": candidate}
    results = {side: _read(given) if isinstance(given, str) else given for side, given in sides.items()}
    names = {side: given if isinstance(given, str) else side for side, given in sides.items()}
    read = {side: result for side, result in results.items() if result is not None}
    missing = [names[side] for side in names if side not in read]
    unused = sorted(name for name in settings if read and (name not in WHERE_IT_RUNS or not missing))
    if unused:
        named = ", ".join(f"`{name}`" for name in unused)
        measured = f"{' and '.join(read)} {'is' if len(read) == 1 else 'are'} measured already"
        raise ResultError(f"{named} is for models to bench; {measured}. Leave it out.")
    for side, result in read.items():
        model_name(result, side)
        say(prediction_entries(result), undecided=False)
    return Inputs(names, read, _plan(missing, read, settings) if missing else None)


def _read(name: str) -> BenchResult | None:
    """The result at a path, or None for a model."""
    path = Path(name).expanduser()
    if (path / RESULTS).is_file() or path.suffix == ".json":
        return BenchResult.load(path)
    try:
        parse_source(name)
    except ModelError as error:
        raise ResultError(f"{name} holds no {RESULTS}, and is no model: {error}") from error
    return None


def _plan(models: list[str], read: Mapping[str, BenchResult], settings: Mapping[str, Any]) -> BenchPlan:
    models = list(dict.fromkeys(models))
    if not read:
        return make_plan(models, **settings)
    ((side, result),) = read.items()
    if "plan" not in result.run:
        raise ResultError(f"{side} is of an older clipguard, which did not keep its plan: bench both again.")
    return replace(BenchPlan.from_dict(result.run["plan"], models), **settings)
