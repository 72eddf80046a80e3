"""clipguard: benchmark and train the adversarial robustness of CLIP models.

import clipguard
model = clipguard.load_model("tiny")
data = clipguard.load_dataset("emoji-animals")
result = clipguard.bench(models=["tiny"], datasets=["emoji-animals"], eps=["1,4,8"])
change = clipguard.compare("runs/before", "runs/after", max_drop=1.0)
tuned = clipguard.finetune("tima", out="runs/tima", steps=100)
outcome = clipguard.attack(any_torch_module, images, labels, eps=4 / 255)
findings = clipguard.doctor(any_torch_module, images, labels, eps=4 / 255)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipguard.core.version import __version__ as __version__

if TYPE_CHECKING:
    from clipguard.api.attack import attack
    from clipguard.api.bench import bench
    from clipguard.api.compare import compare
    from clipguard.api.doctor import doctor
    from clipguard.api.finetune import finetune
    from clipguard.data import load_dataset
    from clipguard.models import load_model

__all__ = ["attack", "bench", "compare", "doctor", "finetune", "load_dataset", "load_model"]
_HOMES = {
    "attack": "clipguard.api.attack",
    "bench": "clipguard.api.bench",
    "compare": "clipguard.api.bench",
    "doctor": "clipguard.sanity.doctor",
    "finetune": "clipguard.api.finetune",
    "load_dataset": "clipguard.data",
    "load_model": "clipguard.models",
}


def __getattr__(name: str) -> Any:
    """Import the public functions on first use (PEP 562): torch is slow to load and `--help` does not need it."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
