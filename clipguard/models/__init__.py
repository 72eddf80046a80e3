"""Models: what the user typed -> weights read safely -> a frozen zero-shot classifier on pixels in [0,1].

Importing this package is cheap. torch and open_clip are imported when a model is loaded or listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipguard.models.source import ModelSource, list_models, parse_source

if TYPE_CHECKING:
    from clipguard.models.classifier import Resolution, ZeroShotClassifier
    from clipguard.models.loading import LoadedModel, ModelInfo, load_model

__all__ = [
    "LoadedModel",
    "ModelInfo",
    "ModelSource",
    "Resolution",
    "ZeroShotClassifier",
    "list_models",
    "load_model",
    "parse_source",
]


def __getattr__(name: str) -> Any:
    """Import the names that need torch on first use (PEP 562), so that `clipguard --help` stays fast."""
    if name in ("Resolution", "ZeroShotClassifier"):
        from clipguard.models import classifier

        return getattr(classifier, name)
    if name in ("LoadedModel", "ModelInfo", "load_model"):
        from clipguard.models import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
