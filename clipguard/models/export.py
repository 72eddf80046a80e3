"""A model in memory as an ordinary open_clip checkpoint folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from clipguard.models.checkpoint.config import CONFIG_NAME, WEIGHT_NAMES
from clipguard.models.loading import LoadedModel
from clipguard.models.text.trained_prompts import record_prompts
from clipguard.models.text.wordpiece import WordPieceTokenizer

WEIGHTS_NAME = WEIGHT_NAMES[0]
State = dict[str, Tensor]


def checkpoint_files(
    loaded: LoadedModel, state: Mapping[str, Tensor], prompts: tuple[str, ...] = ()
) -> dict[str, bytes]:
    """Config and float32 weights of a model, for `local-dir:` in clipguard and open_clip: content by file name.

    A vocabulary of the model's own, which open_clip has no field for, goes with them.

    Args:
        loaded: the model.
        state: its weights, or others in their place.
        prompts: those of the training, to be recorded in the weight file.
    """
    config = {"model_cfg": complete_config(loaded.model_cfg), "preprocess_cfg": _preprocess_config(loaded)}
    tokenizer = loaded.tokenizer
    return {
        **(tokenizer.files(loaded.model_cfg) if isinstance(tokenizer, WordPieceTokenizer) else {}),
        WEIGHTS_NAME: record_prompts(save(plain_state(state), {"format": "pt"}), prompts),
        CONFIG_NAME: (json.dumps(config, indent=2) + "\n").encode(),
    }


def complete_config(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """An architecture's config without pretrained parts: open_clip would fetch what these weights then replace."""
    config = copy.deepcopy(dict(model_cfg))
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    return config


def _preprocess_config(loaded: LoadedModel) -> dict[str, Any]:
    p = loaded.preprocessing
    height, width = p.image_size
    return {
        "size": height if height == width else [height, width],
        "mode": "RGB",
        "mean": list(p.mean),
        "std": list(p.std),
        "interpolation": p.interpolation,
        "resize_mode": p.resize_mode,
        "fill_color": p.fill_color,
        **({} if p.resize_size is None else {"resize_size": list(p.resize_size)}),  # ours; open_clip knows no such key
    }


def plain_state(state: Mapping[str, Tensor]) -> State:
    """Copies of the tensors as a file can hold them: on the CPU, contiguous, floats in float32."""
    return {name: _plain(value) for name, value in state.items()}


def _plain(value: Tensor) -> Tensor:
    """On the CPU, contiguous, of its own memory; floats in float32."""
    value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    return value.contiguous()
