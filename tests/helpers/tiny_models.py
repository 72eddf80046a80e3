"""Tiny real open_clip models of every family, with random weights, in open_clip's local-dir layout."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from clipguard.core.environment.quiet_libraries import quiet_libraries

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quick": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-wide": {"embed_dim": 16, "vision_cfg": {**VIT, "image_size": [32, 48]}, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "timm": {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "avg",
                       "timm_proj": "linear", "image_size": 32},
        "text_cfg": TEXT,
    },
    "siglip": {
        "embed_dim": 16,
        "init_logit_bias": -10.0,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160},
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 17, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
}  # fmt: skip

BLIND = "tiny#normalization=9,9,9/0.1,0.1,0.1"  # sees next to nothing


def write_config(folder: Path, family: str, **preprocess: Any) -> Path:
    """`open_clip_config.json` of a family, with changes to its preprocessing; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": CONFIGS[family], "preprocess_cfg": {**PREPROCESS, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def reference_model(folder: Path, *, load: bool = True) -> torch.nn.Module:
    """The folder's model as open_clip itself builds and loads it."""
    torch.manual_seed(0)
    with quiet_libraries():
        return open_clip.create_model(f"local-dir:{folder}", load_weights=load).eval()


def write_model(folder: Path, family: str, **preprocess: Any) -> Path:
    """A complete model folder; returns it."""
    write_config(folder, family, **preprocess)
    state = state_of(reference_model(folder, load=False))
    if "text_decoder.text_projection" in state:  # open_clip leaves CoCa's as uninitialised memory
        state["text_decoder.text_projection"].zero_()
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def register_architectures(folder: Path) -> None:
    """Make `clipguard-test-vit` and `clipguard-test-vit-quickgelu` known to open_clip."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, family in (("clipguard-test-vit", "vit"), ("clipguard-test-vit-quickgelu", "vit-quick")):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(copy.deepcopy(CONFIGS[family])))
        open_clip.add_model_config(path)
