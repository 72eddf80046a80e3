"""Architectures built once in a test session: half the time of loading a small model goes into random weights that the
file's replace."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

MOST_PARAMETERS = 20_000_000  # of a model that is kept


@contextmanager
def shared_models() -> Iterator[None]:
    """Models that `clipguard.models.build` asks for are copies of the first one with the same config.

    None of them draws from PyTorch's random numbers, whether it is the first or not.
    """
    made: dict[str, nn.Module] = {}
    create = open_clip.create_model

    def share(name: str, *args: Any, **settings: Any) -> Any:
        config = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
        weights = settings.get("load_weights", True) or settings.get("pretrained_text", True)
        if args or weights or not config.is_file():
            return create(name, *args, **settings)
        key = json.dumps([config.read_text(encoding="utf-8"), settings], sort_keys=True, default=str)
        if key not in made:
            with torch.random.fork_rng(devices=[]):
                model = create(name, **settings)
            if sum(parameter.numel() for parameter in model.parameters()) > MOST_PARAMETERS:
                return model
            made[key] = model
        return copy.deepcopy(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "create_model", share)
        yield
