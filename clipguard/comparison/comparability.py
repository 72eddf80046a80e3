"""Whether two results are of the same benchmark, so that a difference between them is one of the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import protocol_line
from clipguard.core.errors import ResultError
from clipguard.core.records.run import ProtocolRecord, RunRecord

# What a run was, but for the model and for how it was computed.
RUN_FIELDS = (
    "norm",
    "eps_mode",
    "quantize",
    "resolution",
    "resize",
    "decode",
    "logit_scale",
    "class_names",
    "engine",
    "protocol",
)
DATASET_FIELDS = {
    "indices": "other images",
    "class_names": "other class names",
    "templates": "other templates",
    "fingerprint": "other data (fingerprint)",
}
OLDER_RUNS = {"decode": "upright"}  # what runs did that are older than the field
MOST_NAMED = 3  # cells named before "and more"


def model_name(result: BenchResult, side: str) -> str:
    """The one model of a result. Raises ResultError if there are several, or no finished cell."""
    names = sorted({cell.model for cell in result.cells})
    if len(names) != 1:
        held = f"has results of {', '.join(names)}" if names else "has no finished cell"
        raise ResultError(f"{side} {held}; name a run of `clipguard bench` with one model.")
    return names[0]


def differences(base: BenchResult, candidate: BenchResult) -> list[str]:
    """Every reason why the two are not like for like, for people; none if they are."""
    return [*unlike(base.run, candidate.run), *_one_sided(base, candidate)]


def unlike(one: RunRecord, other: RunRecord, sides: tuple[str, str] = ("BASE", "CANDIDATE")) -> list[str]:
    """What two runs were set to do differently; none if nothing but models and cells differ."""
    reasons = [
        f"{name} is {_plain(_value(one, name))} in {sides[0]} and {_plain(_value(other, name))} in {sides[1]}"
        for name in RUN_FIELDS  # an older run may lack some
        if _value(one, name) != _value(other, name)
    ]
    if one.get("defense") != other.get("defense"):
        chains = [_chain(run) for run in (one, other)]
        reasons.append(f"the defence is {chains[0]} in {sides[0]} and {chains[1]} in {sides[1]}")
    for name in _shared(one["datasets"], other["datasets"]):
        first: Mapping[str, object] = one["datasets"][name]
        second: Mapping[str, object] = other["datasets"][name]
        other_fields = [text for field, text in DATASET_FIELDS.items() if first[field] != second[field]]
        # The fingerprint covers images and names: on its own it tells that pixels or labels changed.
        reasons += [f"{name} has {other_fields[0]}"] if other_fields else []
    reasons += [
        f"attack {name} has other parameters"
        for name in _shared(one["attacks"], other["attacks"])
        if one["attacks"][name] != other["attacks"][name]
    ]
    return reasons


def _chain(run: RunRecord) -> str:
    """The defences of a run, and what else decides with them."""
    record = run.get("defense")
    if record is None:
        return "none"
    chain = " + ".join(str(defense) for defense in record["chain"])
    others = {name: record[name] for name in ("votes", "draws", "transfer_from")}
    return f"{chain} {others}"


def _value(run: Mapping[str, Any], name: str) -> Any:
    return run.get(name, OLDER_RUNS.get(name))


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in one if name in other]


def _one_sided(base: BenchResult, candidate: BenchResult) -> list[str]:
    """Cells that only one of the two has, such as those of an interrupted run."""
    have = [list(dict.fromkeys((c.dataset, c.attack, c.eps) for c in result.cells)) for result in (base, candidate)]
    reasons = []
    for side, cells, others in (("BASE", have[0], have[1]), ("CANDIDATE", have[1], have[0])):
        only = [_describe(*cell) for cell in cells if cell not in others]
        more = f" and {len(only) - MOST_NAMED} more" if len(only) > MOST_NAMED else ""
        reasons += [f"only {side} has {', '.join(only[:MOST_NAMED])}{more}"] if only else []
    return reasons


def _describe(dataset: str, attack: str, eps: float) -> str:
    return f"{dataset} clean" if attack == "none" else f"{dataset} {attack} at eps {eps:g}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):  # a protocol
        return protocol_line(cast(ProtocolRecord, value)).removeprefix("protocol ")
    return "none" if value is None else str(value)
