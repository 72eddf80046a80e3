"""BASE and CANDIDATE as they are named: results that are there, and models that are benched like the other side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipguard.benchmark.findings import prediction_entries
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results.result import RESULTS, BenchResult
from clipguard.comparison.comparability import model_name
from clipguard.core.errors import ModelError, ResultError
from clipguard.models import parse_source
from clipguard.sanity.entries import say

HOW_FIELDS = ("device", "batch_size")  # of a plan: where it runs, which changes no outcome

TYPED = {"datasets": "dataset", "attacks": "attack"}  # options whose fields have other names


@dataclass(frozen=True)
class Sides:
    """What was named: `names` by side, results that were `read`, and a `plan` for the models, if there are any."""

    names: Mapping[str, str]
    read: Mapping[str, BenchResult]
    plan: BenchPlan | None

    def fill(self, measured: BenchResult | None) -> tuple[BenchResult, BenchResult]:
        """The results of BASE and CANDIDATE: those of models from what was `measured`, None if there are none."""
        sides = dict(self.read)
        if measured is not None:
            sides |= {side: measured.only(name) for side, name in self.names.items() if side not in sides}
        return sides["BASE"], sides["CANDIDATE"]


def find_sides(base: str, candidate: str, options: Mapping[str, Any]) -> Sides:
    """Read results, and plan a run for models: as the other side was.

    `options` (fields of `BenchPlan`, eps as typed) are for two models; next to a result only `device` and `batch_size`
    may be given. Raises ClipguardError before anything is measured.
    """
    names = {"BASE": base, "CANDIDATE": candidate}
    results = {side: _read(name) for side, name in names.items()}
    read = {side: result for side, result in results.items() if result is not None}
    missing = [names[side] for side in names if side not in read]
    unused = sorted(name for name in options if read and (name not in HOW_FIELDS or not missing))
    if unused:
        given = ", ".join(f"--{TYPED.get(name, name).replace('_', '-')}" for name in unused)
        measured = f"{' and '.join(read)} {'is' if len(read) == 1 else 'are'} measured already"
        raise ResultError(f"{given} is for models to bench; {measured}. Leave it out.")
    for side, result in read.items():
        model_name(result, side)
        say(prediction_entries(result), undecided=False)
    return Sides(names, read, _plan(missing, read, options) if missing else None)


def _read(name: str) -> BenchResult | None:
    """The result at a path, or None for a model."""
    path = Path(name).expanduser()
    if (path / RESULTS).is_file() or path.suffix == ".json":
        return BenchResult.read(path)
    try:
        parse_source(name)
    except ModelError as error:
        raise ResultError(f"{name} holds no {RESULTS}, and is no model: {error}") from error
    return None


def _plan(models: list[str], read: Mapping[str, BenchResult], options: Mapping[str, Any]) -> BenchPlan:
    models = list(dict.fromkeys(models))
    if not read:
        datasets, protocol = options.get("datasets", ()), options.get("protocol")
        rest = {name: value for name, value in options.items() if name not in ("datasets", "protocol")}
        return make_plan(models, datasets, protocol=protocol, **rest)
    ((side, result),) = read.items()
    if "plan" not in result.run:
        raise ResultError(f"{side} is of an older clipguard, which did not keep its plan: bench both again.")
    return replace(BenchPlan.from_dict(result.run["plan"], models), **options)
