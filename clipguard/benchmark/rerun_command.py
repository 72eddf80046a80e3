"""The `clipguard bench` command line that makes a stored run again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from typing import Any

from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.core.eps import spell_eps
from clipguard.core.errors import ClipguardError
from clipguard.core.records.run import RunRecord
from clipguard.core.spec import split_attacks

FLAGS = ("quantize", "compile", "duplicate_names")
NO_OPTION = ("models", "datasets", "protocol", "overrides", "part")  # written already, or not at all
UNSET = {"n_samples": "all", "batch_size": "auto"}  # how None is typed, where it can be
SINGULAR = {"datasets": "dataset", "attacks": "attack"}  # fields whose options have other names


@dataclass(frozen=True)
class Rerun:
    """How to get a run again: a command line, empty if there is none, and what it leaves out or why there is none."""

    command: str
    note: str = ""


def rerun(run: RunRecord) -> Rerun:
    """The command line that makes the plan of a run again."""
    if "plan" not in run:
        return Rerun("", "It is of an older clipguard, which did not keep its command line.")
    if run.get("in_memory"):
        return Rerun("", f"No command line: {', '.join(run['in_memory'])} were objects in memory, given from Python.")
    try:
        plan = BenchPlan.from_dict(run["plan"], list(run["models"]))
        defaults = make_plan(plan.models, plan.datasets, protocol=plan.protocol)
        of_norm = make_plan(plan.models, plan.datasets, protocol=plan.protocol, norm=plan.norm)
    except ClipguardError as error:
        return Rerun("", f"No command line: {error}")
    words = ["clipguard", "bench"]
    words += [word for name in plan.models for word in ("--model", name)]
    words += [word for name in plan.datasets for word in ("--dataset", name)]
    words += [] if plan.protocol is None else ["--protocol", plan.protocol]
    words += [] if run.get("probes", True) else ["--no-probes"]
    impossible = []
    for field in fields(BenchPlan):
        value, default = getattr(plan, field.name), getattr(of_norm if field.name == "eps" else defaults, field.name)
        if field.name in NO_OPTION or value == default:
            continue
        option = _option(field.name, value, plan)
        words += option or []
        impossible += [] if option else [f"{field.name} {value}"]
    if impossible:
        return Rerun("", f"No command line, since no option gives {' and '.join(impossible)}: it was made in Python.")
    return Rerun(shlex.join(words), _part(plan))


def _option(name: str, value: Any, plan: BenchPlan) -> list[str] | None:
    """How a field is written on the command line; None if it cannot be."""
    option = f"--{SINGULAR.get(name, name).replace('_', '-')}"
    if name in FLAGS:
        return [option] if value else None
    if name == "eps":
        return [option, ",".join(spell_eps(eps.typed, plan.norm) for eps in value)]
    if name == "attacks":
        typed = ",".join(value)
        return [option, typed] if split_attacks([typed]) == list(value) else None
    if value is None:
        return [option, UNSET[name]] if name in UNSET else None
    return [option, str(value)]


def _part(plan: BenchPlan) -> str:
    if plan.part is None:
        return ""
    first, end = plan.part
    return (
        f"The run is of images {first} to {end - 1} in a seeded random order, as `compare --sequential` takes them; no "
        "option of `bench` asks for these alone. The command measures all, these among the others."
    )
