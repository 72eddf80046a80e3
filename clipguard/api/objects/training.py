"""What `clipguard.finetune` is given, as names for its settings and the objects that the names stand for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clipguard.api.objects.data import open_in_memory
from clipguard.api.objects.kinds import IN_MEMORY, in_memory, shown
from clipguard.core.errors import FinetuneError
from clipguard.data import ZeroShotDataset
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.sources import Sources
from clipguard.models.given import open_weights
from clipguard.models.loading import LoadedModel

SETTLED = (
    "classes",
    "templates",
    "image_column",
    "label_column",
    "data_root",
    "caption_column",
)  # of a ZeroShotDataset


def named_sources(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Sources]:
    """Settings with names in place of objects, and the objects.

    Raises:
        ClipguardError: for what is neither a name nor a model or data set, and for settings that an object has settled.
    """
    names = dict(settings)
    model, data = settings.get("model"), settings.get("dataset")
    loaded = dataset = None
    if not isinstance(model, (str, Path, type(None), bool, int, float)):
        loaded = _clip_model(model)
        names["model"] = loaded.info.name
    if in_memory(data, "`dataset`"):
        names["dataset"] = name = data.name if isinstance(data, ZeroShotDataset) else IN_MEMORY
        for option in SETTLED if isinstance(data, ZeroShotDataset) else ():
            if option in settings:
                raise FinetuneError(f"`{option}` is for names; `load_dataset` settles it: give it there.")
        dataset = partial(_open, data, name)
    return names, Sources(loaded, dataset)


def _clip_model(model: Any) -> LoadedModel:
    if isinstance(model, LoadedModel) or hasattr(model, "state_dict"):
        return open_weights(model)  # refuses modules and learned prompts
    raise FinetuneError(f"`model` takes names and what `load_model` gives, not {shown(model)}.")


def _open(data: Any, name: str, config: FinetuneConfig) -> ZeroShotDataset:
    """The data set as the settings ask for it; its split is its own."""
    settings = {
        "image_column": config.image_column,
        "label_column": config.label_column,
        "classes": config.classes or None,
        "templates": config.templates,
    }
    if config.caption_column is not None:
        settings["caption_column"] = config.caption_column
    return open_in_memory(data, name, settings, needs_text=True)
