"""`clipguard doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import typer

from clipguard.benchmark.plan import BenchPlan
from clipguard.cli.console.terminal import echo_data
from clipguard.cli.options import FILES_OF_MODELS, add_to_models, only_one, pop_settings, takes
from clipguard.core.errors import ClipguardError
from clipguard.core.settings import setting, settings_of

EXAMPLES = """
**Examples**

`clipguard doctor` — the embedded model on 32 embedded images

`clipguard doctor --model local-dir:runs/tuned --dataset photos/ --transfer-from ViT-B-32-quickgelu:openai`

`clipguard doctor --defense ttc` — the same model behind a defence, and the defence itself

`clipguard doctor -m weights.pt -d test.parquet --attack pgd-10 --eps 1 --format json`

Exit codes: 0 no failure (warnings may be there), 1 a failure, 2 bad input. docs/doctor.md explains every check.
"""
FAILURE = 1
EPS = {"linf": "4", "l2": "0.5"}


@dataclass(frozen=True)
class Examination:
    """What else is looked at, and how it is told."""

    transfer_from: str | None = setting(
        None, "Another model, whose adversarial images are tried on this one.", metavar="MODEL", complete="models"
    )
    format: Literal["table", "json"] = setting("table", "What stdout gets.", letter="-f")


NOT_OF_DOCTOR = (
    "protocol",
    "quantize",
    "eps_mode",
    "engine",
    "precision",
    "compile",
    "workers",
    "decoders",
    "text",
    "threats",
    "transfer_from",
)
PLAN = {name: declared for name, declared in settings_of(BenchPlan).items() if name not in NOT_OF_DOCTOR}
PLAN |= {
    "models": PLAN["models"].but(help=PLAN["models"].help.replace("; repeatable", "")),
    "datasets": PLAN["datasets"].but(
        help="A name of `list datasets`, a .parquet or .tar file, a folder, hf:ORG/NAME[@SPLIT], or a .toml file.",
        default=("emoji-animals",),
        default_help=None,
    ),
    "eps": PLAN["eps"].but(help="In units of 1/255 for linf, plain for l2.", default_help="4, or 0.5 for l2"),
    "attacks": PLAN["attacks"].but(help="The attack to examine, as `clipguard list attacks` shows, or a recipe file."),
    "n_samples": PLAN["n_samples"].but(help="A seeded, class-stratified subset of so many, or all.", default=32),
}
SETTINGS = PLAN | FILES_OF_MODELS | settings_of(Examination)


@takes(SETTINGS)
def doctor(given: dict[str, Any]) -> None:
    """Tell whether robustness is real: gradients, noise, black-box attacks, large eps and what else goes wrong."""
    from clipguard.benchmark.protocols import make_plan

    how = pop_settings(given, settings_of(Examination))
    add_to_models(given)
    for name in ("models", "datasets", "attacks"):
        only_one("doctor", PLAN[name], given)
    given.setdefault("n_samples", PLAN["n_samples"].default)
    if not given.get("eps"):
        given["eps"] = EPS.get(given.get("norm", "linf"), ())
    plan = make_plan(**given)
    if len(plan.datasets) > 1 or len(plan.eps) > 1:
        raise ClipguardError("`clipguard doctor` takes one data set and one `eps`; name one of each.")
    from clipguard.benchmark.checks.diagnosis import diagnose
    from clipguard.cli.console.progress import RichProgress
    from clipguard.cli.console.render import print_diagnosis

    with RichProgress() as progress:
        diagnosis = diagnose(plan, how["transfer_from"], progress)
    if how["format"] == "json":
        echo_data(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis)
    if diagnosis.verdict == "failure":
        raise typer.Exit(FAILURE)
