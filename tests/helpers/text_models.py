"""Small real open_clip models with every kind of text projection, in open_clip's local-dir layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.models.loading import LoadedModel

VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "parameter": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "width": 24, "heads": 3}},
    "linear": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "proj_bias": True}},
    "custom-parameter": {"embed_dim": 16, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "custom-linear": {
        "embed_dim": 16, "custom_text": True, "vision_cfg": VISION, "text_cfg": {**TEXT, "proj_bias": True}
    },
    "none": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "proj_type": "none"}},
}  # fmt: skip


def write_model(folder: Path, kind: str) -> Path:
    """A complete model folder with random weights; returns it."""
    folder.mkdir(parents=True)
    config = {"model_cfg": CONFIGS[kind], "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    with quiet_libraries():
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for name, parameter in model.named_parameters():
        if name.endswith("text_projection.bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def write_export(folder: Path, config: Path, loaded: LoadedModel, files: dict[str, bytes]) -> Path:
    """What an exporter writes: the config of another folder, the model's weights, and the files of the text side."""
    folder.mkdir(parents=True)
    shutil.copy(config / "open_clip_config.json", folder)
    state = {k: v.contiguous() for k, v in loaded.model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def open_clip_embeddings(folder: Path, names: list[str], template: str) -> torch.Tensor:
    """(C, D) unit rows as open_clip alone computes them."""
    with quiet_libraries():
        model = open_clip.create_model(f"local-dir:{folder}").eval()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        return model.encode_text(tokenizer([template.format(name) for name in names]), normalize=True)
