"""Which of open_clip's architectures a weight file fits, by every name and shape in it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.match import compare, openai_mark
from clipguard.models.checkpoint.reader import WeightFile, find_release
from clipguard.models.sources.open_clip_catalog import activation_agrees, architectures, tag_config, uses_quick_gelu


def find_architectures(file: WeightFile) -> list[str]:
    """The architectures whose whole model, or whose image tower if the file holds that alone, has just these tensors.

    Those with a text tower from transformers are left out: it cannot be built without fetching its config.
    """
    import open_clip

    matching = []
    for name in architectures():
        config = open_clip.get_model_config(name)
        if _could_be(config, file.tensors) and not compare(outline(name), file)[1]:
            matching.append(name)
    return matching


def _could_be(config: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Without building anything: is it the same family, width and patch size?"""
    vision = config["vision_cfg"]
    if "hf_model_name" in config["text_cfg"]:
        return False
    is_timm = any(name.startswith(("visual.trunk.", "image_encoder.")) for name in tensors)
    if is_timm or "timm_model_name" in vision:
        last = tensors.get("visual.head.proj.weight")
        if last is not None and len(last) != config["embed_dim"]:
            return False
        is_convnext = "visual.trunk.stem.0.weight" in tensors
        return is_timm and ("convnext" in vision.get("timm_model_name", "")) == is_convnext
    first = tensors.get("visual.conv1.weight")
    is_resnet = "visual.layer1.0.conv1.weight" in tensors
    if first is None or first.ndim != 4 or is_resnet != isinstance(vision.get("layers"), list):
        return False
    width: int = vision.get("width", 768 if not is_resnet else 64)
    return first.shape[0] == (width // 2 if is_resnet else width)


@cache
def outline(architecture: str) -> nn.Module:
    """The model without memory for its weights: names and shapes."""
    import open_clip

    with quiet_libraries(), torch.device("meta"):
        model: nn.Module = open_clip.create_model(
            architecture, load_weights=False, pretrained_text=False, device="meta"
        )
    return model


def openai_twin(candidates: list[str]) -> str | None:
    """The one of these architectures, or of two with either activation, for which OpenAI released weights."""
    return next((name for name in candidates if tag_config(name, "openai") and activation_agrees(name, "openai")), None)


def describe_shapes(candidates: list[str]) -> str:
    """`, shaped as ViT-B-32 or ViT-B-32-quickgelu`, if that is known."""
    return f", shaped as {' or '.join(candidates) or 'no architecture that open_clip knows'}"


def settle_activation(file: WeightFile, candidates: list[str]) -> tuple[str, str]:
    """The architecture of a whole model, of those that its shapes fit, and what tells.

    Architectures that differ in their activation alone have the same shapes: what tells is where the file comes from.

    Raises:
        ModelError: when none is left, or several.
    """
    if not candidates:
        raise ModelError(
            f"{file.path} ({file.contents.format}) fits no architecture that open_clip knows: name the one it was"
            f" trained with, as in ARCH:{file.path}, or give a local-dir: with its config."
        )
    release, mark = find_release(file.sha256), openai_mark(file)
    kept, why = candidates, "by names and shapes"
    if release is not None:
        kept = [name for name in candidates if uses_quick_gelu(name) == release.quick_gelu]
        why += f", its activation because its SHA-256 is that of the published {release.name}"
    elif mark is not None:
        kept = [name for name in candidates if uses_quick_gelu(name)]
        why += f", its activation because {mark}"
    if len(kept) == 1:
        return kept[0], why
    choices = " or ".join(f"{name}:{file.path}" for name in candidates)
    raise ModelError(
        f"{file.path} has the shapes of {' and '.join(candidates)}, and nothing in it tells which activation it was"
        f" trained with, which leaves no trace in weights: write {choices} (OpenAI's models and what is tuned from"
        " them: -quickgelu)."
    )
