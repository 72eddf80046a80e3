"""The settings of a certification: those of a bench run's data and models, and what is asked of the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipguard.benchmark.plan import OF_DEFENSE, BenchPlan
from clipguard.certification.smoothing import Smoothing
from clipguard.core.settings import read_settings, settings_of

# Of attacks, of where they are made, and of who computes them: noise is added to what the model sees, in this process.
NOT_OF_CERTIFY = (
    "eps",
    "attacks",
    "norm",
    "resolution",
    "quantize",
    "eps_mode",
    "engine",
    "precision",
    "compile",
    "workers",
    "ray",
    "protocol",
    "prompts",
    *OF_DEFENSE,
)
SMOOTHING = settings_of(Smoothing)
PLAN = {name: declared for name, declared in settings_of(BenchPlan).items() if name not in NOT_OF_CERTIFY}
PLAN |= {
    "datasets": PLAN["datasets"].but(default_help="all embedded sets"),
    "seed": PLAN["seed"].but(help="Of the subset and of the noise."),
    "batch_size": PLAN["batch_size"].but(help="Noisy copies a pass, or auto: what fits. Halved if memory runs out."),
}
SETTINGS = PLAN | SMOOTHING
FIXED = {"norm": "l2", "attacks": ("none",), "precision": "float32"}  # of a `BenchPlan` that attacks nothing


def make_certification(given: Mapping[str, Any]) -> tuple[BenchPlan, Smoothing]:
    """The models and data of a certification as a plan without an attack, and what is asked.

    Args:
        given: fields of `SETTINGS` in any form that `Setting.read` takes.

    Raises:
        ClipguardError: for an unknown setting, and values that no run could use.
    """
    from clipguard.benchmark.protocols import make_plan  # not for a look at the settings alone

    read = read_settings(given, SETTINGS)
    smoothing = Smoothing(**{name: read.pop(name) for name in SMOOTHING if name in read})
    smoothing.check()
    plan = make_plan(**{"models": PLAN["models"].default, "datasets": (), **read, **FIXED})
    plan.check()
    return plan, smoothing


def settings_record(plan: BenchPlan, smoothing: Smoothing) -> dict[str, Any]:
    """`run.plan` of the result file: plain JSON types, which `--config` reads again."""
    values = plan.to_dict()
    of_plan = {name: values[name] for name in PLAN if name in values}
    return {"models": list(plan.models), **of_plan, **smoothing.to_dict()}
