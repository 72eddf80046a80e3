"""The record of a run as it starts: everything that can change a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import cast

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.task import Task, engine_options
from clipguard.core.eps import notice_small_eps
from clipguard.core.records.provenance import Machine, machine, versions
from clipguard.core.records.run import AttackRecord, ModelRecord, RunRecord
from clipguard.models.loading import ModelInfo


@dataclass(frozen=True)
class Place:
    """Where a run computes, and the precision of its search."""

    machine: Machine
    precision: str

    @classmethod
    def of(cls, plan: BenchPlan, device: str) -> Place:
        """This process."""
        return cls(machine(device), engine_options(plan, device).precision)


def start_record(
    plan: BenchPlan, infos: Mapping[str, ModelInfo], tasks: Sequence[Task], recipes: Sequence[Recipe], place: Place
) -> RunRecord:
    """`run` of the result files, still without costs and findings.

    Args:
        plan: of the run.
        infos: what its models are, by their names as typed.
        tasks: its data sets.
        recipes: its attacks.
        place: where it computes.
    """
    notice_small_eps(plan.eps, plan.norm)
    return {
        "complete": False,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": 0.0,
        "versions": versions(),
        "machine": place.machine,
        "plan": plan.to_dict(),
        "seed": plan.seed,
        "norm": plan.norm,
        "eps": [eps.typed for eps in plan.eps],
        "eps_mode": plan.eps_mode,
        "protocol": {"name": plan.protocol, "overrides": dict(plan.overrides)} if plan.protocol else None,
        "resolution": plan.resolution,
        "resize": plan.resize,
        "decode": plan.decode,
        "logit_scale": plan.logit_scale or "model",
        "class_names": plan.class_names,
        "quantize": plan.quantize,
        "engine": plan.engine,
        "precision": place.precision,
        "compile": plan.compile,
        "batch_size": plan.batch_size or "auto",
        "text": plan.text,
        "models": {plan.shown(name): cast(ModelRecord, info.to_dict()) for name, info in infos.items()},
        "datasets": {task.name: task.record() for task in tasks},
        "attacks": {recipe.name: cast(AttackRecord, recipe.parameters()) for recipe in recipes},
        "batch_invariant": {},
        "costs": [],
    }
