"""clipguard: benchmark and train the adversarial robustness of CLIP models.

import clipguard
model = clipguard.load_model("tiny")
data = clipguard.load_dataset("emoji-animals")
result = clipguard.bench("tiny", "emoji-animals", eps=[1 / 255, 4 / 255])
change = clipguard.compare("runs/before", "runs/after", max_drop=1.0)
tuned = clipguard.finetune("tima", out="runs/tima", steps=100)
outcome = clipguard.attack(any_torch_module, images, labels, eps=4 / 255)
findings = clipguard.doctor(any_torch_module, images, labels, eps=4 / 255)
proof = clipguard.certify("tiny", "emoji-food", sigma=0.25, samples=10_000)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipguard.core.errors import (
    AttackError,
    ClipguardError,
    DatasetError,
    DefenseError,
    FinetuneError,
    ModelError,
    NoGradientError,
    NonFiniteError,
    OutputError,
    ResultError,
    SplitError,
)
from clipguard.core.version import __version__

if TYPE_CHECKING:
    from clipguard.api.attack import attack
    from clipguard.api.attack_result import AttackResult
    from clipguard.api.bench import bench
    from clipguard.api.certify import certify
    from clipguard.api.compare import compare
    from clipguard.api.convert import convert
    from clipguard.api.doctor import doctor
    from clipguard.api.finetune import finetune
    from clipguard.api.listing import (
        list_attacks,
        list_datasets,
        list_defenses,
        list_methods,
        list_models,
        list_protocols,
    )
    from clipguard.api.plan import plan
    from clipguard.api.report import report
    from clipguard.attacks.base import Attack
    from clipguard.attacks.methods.apgd import APGD, APGDDLR, APGDTargeted
    from clipguard.attacks.methods.fab import FABTargeted
    from clipguard.attacks.methods.pgd import CW, FGSM, PGD
    from clipguard.attacks.methods.square import Square
    from clipguard.attacks.recipes import Recipe
    from clipguard.benchmark.planning.estimate import Estimate
    from clipguard.benchmark.results.result import BenchResult, Cell
    from clipguard.certification.result import CertifyResult
    from clipguard.comparison.result import CellChange, Comparison
    from clipguard.data import ZeroShotDataset, load_dataset
    from clipguard.finetuning.merge import merge
    from clipguard.finetuning.output.result import FinetuneResult
    from clipguard.models import LoadedModel, ZeroShotClassifier, load_model
    from clipguard.models.inspection import Inspection
    from clipguard.models.inspection import inspect_model as inspect
    from clipguard.sanity.checks import Finding
    from clipguard.sanity.findings import Findings

_HOMES = {
    "attack": "clipguard.api.attack",
    "bench": "clipguard.api.bench",
    "certify": "clipguard.api.certify",
    "compare": "clipguard.api.compare",
    "convert": "clipguard.api.convert",
    "doctor": "clipguard.api.doctor",
    "finetune": "clipguard.api.finetune",
    "inspect": "clipguard.models.inspection",
    "list_attacks": "clipguard.api.listing",
    "list_datasets": "clipguard.api.listing",
    "list_defenses": "clipguard.api.listing",
    "list_methods": "clipguard.api.listing",
    "list_models": "clipguard.api.listing",
    "list_protocols": "clipguard.api.listing",
    "load_dataset": "clipguard.data",
    "load_model": "clipguard.models",
    "merge": "clipguard.finetuning.merge",
    "plan": "clipguard.api.plan",
    "report": "clipguard.api.report",
    "APGD": "clipguard.attacks.methods.apgd",
    "APGDDLR": "clipguard.attacks.methods.apgd",
    "APGDTargeted": "clipguard.attacks.methods.apgd",
    "CW": "clipguard.attacks.methods.pgd",
    "FGSM": "clipguard.attacks.methods.pgd",
    "PGD": "clipguard.attacks.methods.pgd",
    "FABTargeted": "clipguard.attacks.methods.fab",
    "Square": "clipguard.attacks.methods.square",
    "Attack": "clipguard.attacks.base",
    "Recipe": "clipguard.attacks.recipes",
    "AttackResult": "clipguard.api.attack_result",
    "BenchResult": "clipguard.benchmark.results.result",
    "Cell": "clipguard.benchmark.results.result",
    "CertifyResult": "clipguard.certification.result",
    "CellChange": "clipguard.comparison.result",
    "Comparison": "clipguard.comparison.result",
    "Estimate": "clipguard.benchmark.planning.estimate",
    "Finding": "clipguard.sanity.checks",
    "Findings": "clipguard.sanity.findings",
    "FinetuneResult": "clipguard.finetuning.output.result",
    "Inspection": "clipguard.models.inspection",
    "LoadedModel": "clipguard.models",
    "ZeroShotClassifier": "clipguard.models",
    "ZeroShotDataset": "clipguard.data",
}
_OTHER_NAMES = {"inspect": "inspect_model"}  # where they live

__all__ = [
    "APGD",
    "APGDDLR",
    "CW",
    "FGSM",
    "PGD",
    "APGDTargeted",
    "Attack",
    "AttackError",
    "AttackResult",
    "BenchResult",
    "Cell",
    "CellChange",
    "CertifyResult",
    "ClipguardError",
    "Comparison",
    "DatasetError",
    "DefenseError",
    "Estimate",
    "FABTargeted",
    "Finding",
    "Findings",
    "FinetuneError",
    "FinetuneResult",
    "Inspection",
    "LoadedModel",
    "ModelError",
    "NoGradientError",
    "NonFiniteError",
    "OutputError",
    "Recipe",
    "ResultError",
    "SplitError",
    "Square",
    "ZeroShotClassifier",
    "ZeroShotDataset",
    "__version__",
    "attack",
    "bench",
    "certify",
    "compare",
    "convert",
    "doctor",
    "finetune",
    "inspect",
    "list_attacks",
    "list_datasets",
    "list_defenses",
    "list_methods",
    "list_models",
    "list_protocols",
    "load_dataset",
    "load_model",
    "merge",
    "plan",
    "report",
]


def __getattr__(name: str) -> Any:
    """Import the public names on first use (PEP 562): torch is slow to load and `--help` does not need it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), _OTHER_NAMES.get(name, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
