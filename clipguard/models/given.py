"""A CLIP model by its name, or one that is in memory already."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from clipguard.core.errors import ModelError
from clipguard.models.loading import LoadedModel, load_model
from clipguard.models.module_model import ModuleModel


def open_model(model: str | Path | LoadedModel, device: str | torch.device = "cpu") -> LoadedModel:
    """What `load_model` gave, as and where it is; or the model of a name, loaded onto a device.

    Raises:
        ModelError: for a module, which is no CLIP, and as `load_model` does.
    """
    if isinstance(model, (nn.Module, ModuleModel)):
        kind = type(model.model if isinstance(model, ModuleModel) else model).__name__
        what = f"A bare module ({kind}) is no CLIP model: it has no config, text tower or tokenizer"
        raise ModelError(f"{what}. Give a model's name, or what `load_model` gives.")
    return model if isinstance(model, LoadedModel) else load_model(model, device=device)
