"""Hugging Face `CLIPModel` <-> open_clip's `CLIP`: the same function under other names.

transformers splits the query, key and value projections that open_clip stores as one `in_proj`, and keeps the two final
projections as linear layers, transposed. Only the plain CLIP of OpenAI's paper (ViT with a class token, causal text
transformer, CLIP's tokenizer) exists on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.foreign import read_json

CONFIG_NAME = "config.json"
VOCABULARY = 49408  # of CLIP's tokenizer, the only one open_clip's plain CLIP has
_TOWER_PREFIXES = {"vision_model.": "visual.", "text_model.": ""}
_TENSOR_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # transformers' spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_QUERY_KEY_VALUE = r"self_attn\.([qkv])_proj\.(weight|bias)$"
# transformers leaves out of a config.json what equals these (transformers.CLIPConfig).
_TEXT_DEFAULTS = {"vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
         "layer_norm_eps": 1e-5}  # fmt: skip
_VISION_DEFAULTS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
           "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
           "num_channels": 3}  # fmt: skip


def is_transformers(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these names are those of transformers' CLIP."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in tensors)


def from_transformers(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a `CLIPModel` or `CLIPVisionModelWithProjection` under open_clip's names.

    A name that is neither's is kept, for the strict comparison of all names to report.

    Raises:
        ModelError: when a block lacks one of the three projections that become one.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("embeddings.position_ids"):
            continue  # a constant
        if re.search(_QUERY_KEY_VALUE, name):
            joined = _rename_block(re.sub(_QUERY_KEY_VALUE, r"attn.in_proj_\2", name))
            if joined not in state:
                state[joined] = _join(tensors, name, path)
        elif name in _PROJECTIONS:
            state[_PROJECTIONS[name]] = tensor.T.contiguous()
        else:
            state[_TENSOR_NAMES.get(name) or _rename_block(name)] = tensor
    return state


def _join(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """The query, key and value projections of a block, one above the other, given the name of any of them."""
    parts = [re.sub(_QUERY_KEY_VALUE, rf"self_attn.{part}_proj.\2", name) for part in "qkv"]
    missing = [part for part in parts if part not in tensors]
    if missing:
        raise ModelError(f"{path} lacks {missing[0]}: it is damaged or of another model; fetch it again.")
    return torch.cat([tensors[part] for part in parts])


def _rename_block(name: str) -> str:
    match = re.fullmatch(r"(vision_model\.|text_model\.)encoder\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    module, _, kind = match[3].rpartition(".")
    inner = f"{_BLOCK_NAMES[module]}.{kind}" if module in _BLOCK_NAMES else match[3]
    return f"{_TOWER_PREFIXES[match[1]]}transformer.resblocks.{match[2]}.{inner}"


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_transformers`, for the tensors of a model that `transformers_config` accepts."""
    names = {ours: theirs for theirs, ours in _TENSOR_NAMES.items()}
    projections = {ours: theirs for theirs, ours in _PROJECTIONS.items()}
    block = {ours: theirs for theirs, ours in _BLOCK_NAMES.items()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if name in projections:
            tensors[projections[name]] = tensor.T.contiguous()
        elif match is None:
            tensors[names[name]] = tensor.reshape(()) if name == "logit_scale" else tensor
        else:
            layer = f"{'vision_model' if match[1] else 'text_model'}.encoder.layers.{match[2]}"
            if match[3].startswith("attn.in_proj_"):
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    kind = match[3].removeprefix("attn.in_proj_")
                    tensors[f"{layer}.self_attn.{part}_proj.{kind}"] = piece.contiguous()
            else:
                module, _, kind = match[3].rpartition(".")
                tensors[f"{layer}.{block[module]}.{kind}"] = tensor
    return tensors


def read_transformers_config(folder: Path) -> dict[str, Any]:
    """open_clip's `model_cfg` of a `CLIPModel` folder, from its `config.json`.

    Raises:
        ModelError: when the model is not a CLIP, or one that open_clip's plain CLIP cannot be.
    """
    where = folder / CONFIG_NAME
    config = read_json(where)
    if config.get("model_type") == "clip_vision_model":
        raise ModelError(
            f"{where} describes an image tower alone: give its weight file as `model`, and the model it was tuned from"
            " as `base`."
        )
    if config.get("model_type") != "clip":
        raise ModelError(f"{where} describes {config.get('model_type')!r}, not a CLIPModel: convert it first.")
    vision, text = _part(config, "vision_config", _VISION_DEFAULTS), _part(config, "text_config", _TEXT_DEFAULTS)
    acts = {vision["hidden_act"], text["hidden_act"]}
    if len(acts) > 1 or not acts <= {"quick_gelu", "gelu"}:
        raise ModelError(f"{where} has activations {sorted(acts)}: open_clip's CLIP has quick_gelu or gelu throughout.")
    if type(vision["image_size"]) is not int:
        raise ModelError(f"{where} has image_size {vision['image_size']!r}: only one whole number is supported.")
    if vision["num_channels"] != 3 or text["vocab_size"] != VOCABULARY:
        raise ModelError(f"{where}: only 3 colours and CLIP's vocabulary of {VOCABULARY} are supported.")
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_tower(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **_tower(text),
        },
    }


def _part(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's config. As in transformers, old files' `vision_config_dict` and `text_config_dict` go first."""
    return {**defaults, **(config.get(f"{name}_dict") or config.get(name) or {})}


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    ratio = inner / width
    tower = {
        "width": width,
        "layers": config["num_hidden_layers"],
        "mlp_ratio": ratio if int(width * ratio) == inner else (inner + 0.5) / width,  # open_clip rounds down
    }
    eps = config["layer_norm_eps"]
    return tower if eps == _TEXT_DEFAULTS["layer_norm_eps"] else {**tower, "norm_kwargs": {"eps": eps}}


def transformers_config(model_cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The `config.json` of an open_clip config.

    Raises:
        ModelError: for an architecture that transformers' CLIPModel cannot be.
    """
    vision, text = dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"])
    known = {"image_size", "patch_size", "head_width", "width", "layers", "mlp_ratio", "context_length", "vocab_size",
             "heads", "norm_kwargs", "timm_model_pretrained", "hf_model_pretrained"}  # fmt: skip
    other = sorted((set(vision) | set(text)) - known)
    plain = isinstance(vision.get("layers", 12), int) and isinstance(vision.get("image_size", 224), int)
    if other or not plain or set(model_cfg) - {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"}:
        reason = other[0] if other else "another image tower or text tower"
        raise ModelError(
            f"{name} has no counterpart in transformers' CLIPModel ({reason}): write it as open_clip's local-dir:,"
            " without `to=hf`."
        )
    act = "quick_gelu" if model_cfg.get("quick_gelu", False) else "gelu"
    size, width = model_cfg["embed_dim"], vision.get("width", 768)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": size,
        "dtype": "float32",
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
            "num_channels": 3,
            **_sizes(vision, width, size, act, vision.get("layers", 12), width // vision.get("head_width", 64)),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "max_position_embeddings": text.get("context_length", 77),
            "vocab_size": text.get("vocab_size", VOCABULARY),
            "bos_token_id": VOCABULARY - 2,
            "eos_token_id": VOCABULARY - 1,
            **_sizes(text, text.get("width", 512), size, act, text.get("layers", 12), text.get("heads", 8)),
        },
    }  # fmt: skip


def _sizes(config: Mapping[str, Any], width: int, size: int, act: str, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": int(width * config.get("mlp_ratio", 4.0)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": size,
        "hidden_act": act,
        "layer_norm_eps": (config.get("norm_kwargs") or {}).get("eps", 1e-5),
    }
