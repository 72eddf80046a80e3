"""Models: what the user typed -> weights read safely -> a frozen zero-shot classifier on pixels in [0,1].

`load_model` goes the way: `source.py` takes the spec apart, `detect.py` reads what a lone weight file tells,
`locate.py` finds or fetches config and weights, `build.py` makes the model and fills it, `loading.py` describes it.

Importing this package is cheap: what needs torch or open_clip is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipguard.models.sources.spec import ModelSource, list_models, parse_source

if TYPE_CHECKING:
    from clipguard.models.classifier import Resolution, ZeroShotClassifier
    from clipguard.models.loading import LoadedModel, ModelInfo, load_model
    from clipguard.models.preprocessing import Preprocessing

__all__ = [
    "LoadedModel",
    "ModelInfo",
    "ModelSource",
    "Preprocessing",
    "Resolution",
    "ZeroShotClassifier",
    "list_models",
    "load_model",
    "parse_source",
]


NEED_TORCH = {
    "LoadedModel": "loading",
    "ModelInfo": "loading",
    "Preprocessing": "preprocessing",
    "Resolution": "classifier",
    "ZeroShotClassifier": "classifier",
    "load_model": "loading",
}


def __getattr__(name: str) -> Any:
    """Import the names that need torch on first use (PEP 562), so that `clipguard --help` stays fast."""
    if name not in NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{NEED_TORCH[name]}"), name)
