"""The `clipguard bench` command line that makes a stored run again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import SETTINGS, make_plan
from clipguard.core.eps import spell_eps
from clipguard.core.errors import ClipguardError
from clipguard.core.records.run import RunRecord, model_names


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
        plan = BenchPlan.from_dict(run["plan"], model_names(run))
        defaults = make_plan(plan.models, plan.datasets, protocol=plan.protocol)
        of_norm = make_plan(plan.models, plan.datasets, protocol=plan.protocol, norm=plan.norm)
    except ClipguardError as error:
        return Rerun("", f"No command line: {error}")
    words = ["clipguard", "bench"]
    for name in ("models", "datasets", "protocol"):
        words += SETTINGS[name].spell(getattr(plan, name)) or []
    words += [] if run.get("probes", True) else ["--no-probes"]
    impossible = []
    for name, setting in SETTINGS.items():
        value, default = getattr(plan, name), getattr(of_norm if name == "eps" else defaults, name)
        if name in ("models", "datasets", "protocol") or value == default:
            continue
        if name == "eps":
            words += [setting.flag, ",".join(spell_eps(eps.typed, plan.norm) for eps in value)]
            continue
        option = setting.spell(value)
        words += option or []
        impossible += [] if option else [f"{name} {value}"]
    if impossible:
        return Rerun("", f"No command line, since no option gives {' and '.join(impossible)}: it was made in Python.")
    return Rerun(shlex.join(words), _part(plan))


def _part(plan: BenchPlan) -> str:
    if plan.part is None:
        return ""
    first, end = plan.part
    return (
        f"The run is of images {first} to {end - 1} in a seeded random order, as `compare --sequential` takes them; no "
        "option of `bench` asks for these alone. The command measures all, these among the others."
    )
