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


def open_weights(model: str | Path | LoadedModel) -> LoadedModel:
    """The same for who writes or trains weights: learned prompts are none, and would be lost.

    Raises:
        ModelError: for a model that is scored with learned prompts, and as `open_model` does.
    """
    loaded = open_model(model)
    if loaded.prompts is not None:
        raise ModelError(
            f"{loaded.info.name} is scored with the learned prompts of {loaded.prompts.label}, which are no weights:"
            " give the model without them, as `load_model` gives it, and keep that file for `prompts`."
        )
    return loaded
