"""Compare a weight file with a built model: every key, every shape, and the activation it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.contents import shorten
from clipguard.models.checkpoint.reader import WeightFile, find_release
from clipguard.models.sources.open_clip_catalog import quick_gelu_twin

_IGNORED_BUFFER = "num_batches_tracked"  # batch-norm's counter: has no effect in eval mode, and old files lack it


def fit_state(model: nn.Module, file: WeightFile, architecture: str) -> dict[str, torch.Tensor]:
    """The file's tensors under the model's names, complete and of the model's shapes (dtypes as stored).

    Complete means all of the model, or of its image tower if the file holds that alone. Only spellings are adapted
    (open_clip's old flat text tower, MobileCLIP's names, a scalar stored as one element); nothing is resized, filled in
    or left out.

    Raises:
        ModelError: naming every key that is missing, unexpected or of another shape (long lists are cut).
    """
    state, problems = compare(model, file)
    if problems:
        raise ModelError(
            f"{file.path} does not fit {architecture}: {'; '.join(problems)}. Name the architecture these weights were"
            " trained with (`clipguard list models`; `clipguard inspect FILE` says what the file is)."
        )
    return state


def compare(model: nn.Module, file: WeightFile) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The file's tensors under the model's names, and every difference, in words; see `fit_state`."""
    image_only = file.contents.image_only
    expected = {k: v for k, v in model.state_dict().items() if not image_only or k.startswith("visual.")}
    state = {k: v for k, v in _rename(model, file.tensors).items() if not k.endswith("embeddings.position_ids")}
    for name, tensor in expected.items():
        if name.endswith(_IGNORED_BUFFER):
            state.setdefault(name, torch.zeros_like(tensor, device="cpu"))
        elif name in ("logit_scale", "logit_bias") and name in state and state[name].numel() == tensor.numel() == 1:
            state[name] = state[name].reshape(tensor.shape)
    return state, _differences(state, expected)


def _rename(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's own conversions between its old and new names (see open_clip.factory.load_checkpoint)."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state: dict[str, torch.Tensor] = convert_state_dict(model, dict(tensors))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    return dict(state)


def _differences(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shared = [name for name in expected if name in state]
    reshaped = [
        f"{name} (file {list(state[name].shape)}, model {list(expected[name].shape)})"
        for name in shared
        if state[name].shape != expected[name].shape
    ]
    retyped = [
        f"{name} ({state[name].dtype})"
        for name in shared
        if state[name].is_floating_point() != expected[name].is_floating_point()
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped), ("not real", retyped))
    return [f"{len(names)} {label}: {shorten(names)}" for label, names in groups if names]


def check_activation(file: WeightFile, architecture: str, model_cfg: dict[str, Any], *, from_folder: bool) -> None:
    """Refuse weights trained with QuickGELU in a GELU model, and known GELU releases in a QuickGELU model.

    The activation leaves no trace in the tensors, and the wrong one costs accuracy without any error, so the file is
    searched for marks of OpenAI's releases. A folder whose config states `quick_gelu` is believed, except against the
    hash of a published file.

    Raises:
        ModelError: naming the architecture to use instead and the mark that was found.
    """
    if "timm_model_name" in model_cfg["vision_cfg"]:
        return  # the activation is part of the timm model's name
    uses_quick = bool(model_cfg.get("quick_gelu", False))
    release = find_release(file.sha256)
    if release:
        mark = f"its SHA-256 is that of the published {release.name}"
        needs_quick = release.quick_gelu
    else:
        openai = None if from_folder and "quick_gelu" in model_cfg else openai_mark(file)
        if openai is None or uses_quick:
            return
        mark, needs_quick = openai, True
    if needs_quick == uses_quick:
        return
    trained, built = ("QuickGELU", "GELU") if needs_quick else ("GELU", "QuickGELU")
    raise ModelError(
        f"{file.path} was trained with {trained} ({mark}), but {architecture} uses {built}:"
        f" {_activation_cure(file, architecture, needs_quick, from_folder, bool(release))}"
    )


def _activation_cure(file: WeightFile, architecture: str, quick: bool, from_folder: bool, certain: bool) -> str:
    setting = f'"quick_gelu": {str(quick).lower()}'
    if from_folder:
        return f"put {setting} into model_cfg (or the opposite, if you know better)."
    twin = quick_gelu_twin(architecture)
    if file.contents.image_only:
        use = f"use {twin or 'an architecture'} with {setting} as `base`"
    else:
        use = f"use {twin}:{file.path}" if twin else f"use an architecture with {setting}"
    doubt = "" if certain else '; if they do use GELU, give them as a local-dir: with "quick_gelu": false'
    return f"{use}{doubt}."


def openai_mark(file: WeightFile) -> str | None:
    """What in the file says that it comes from OpenAI's weights, all of which use QuickGELU; None if nothing does."""
    if file.container == "TorchScript":
        return "it is a TorchScript archive, the format of OpenAI's releases"
    if file.contents.metadata_keys:
        return f"it has OpenAI's metadata entries {', '.join(file.contents.metadata_keys)}"
    if _has_openai_dtypes(file.tensors):
        return "it mixes float16 and float32 the way OpenAI's releases do"
    if "openai" in file.path.name.lower():
        return "its file name says openai"
    return None


def _has_openai_dtypes(tensors: Mapping[str, torch.Tensor]) -> bool:
    """OpenAI's `convert_weights`: linear, convolution and projection weights in float16, norms and embeddings not."""
    half = [t.dtype for n, t in tensors.items() if n.endswith(("in_proj_weight", "c_fc.weight", "text_projection"))]
    full = [t.dtype for n, t in tensors.items() if n.endswith(("ln_final.weight", "ln_post.weight"))]
    return bool(half and full) and set(half) == {torch.float16} and set(full) == {torch.float32}
