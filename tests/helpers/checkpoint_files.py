"""Files in the layouts in which robust CLIP models are published, made from tiny models, and what they must compute."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from tiny_models import reference_model, state_of

from clipguard.models.checkpoint.transformers import to_transformers

State = dict[str, torch.Tensor]
NAMES, TEMPLATE = ["cat", "dog", "fire engine"], "a photo of a {}."


def tuned_model(base: Path) -> torch.nn.Module:
    """The model of a shared folder with another image tower, near its own; to be changed at will."""
    return copy.deepcopy(_tuned_model(base))


@cache
def _tuned_model(base: Path) -> torch.nn.Module:
    model = reference_model(base)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter += 0.1 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    return model


def logits_of(
    model: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...], pixels: torch.Tensor
) -> torch.Tensor:
    """Zero-shot logits by open_clip's own functions."""
    tokens = open_clip.SimpleTokenizer(context_length=16)([TEMPLATE.format(name) for name in NAMES])
    with torch.no_grad():
        normalized = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        image = torch.nn.functional.normalize(model.encode_image(normalized), dim=-1)
        text = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
        return model.logit_scale.exp() * image @ text.T


def visual(model: torch.nn.Module) -> State:
    return {name: tensor.clone().contiguous() for name, tensor in model.visual.state_dict().items()}


def optimizer_state(model: torch.nn.Module) -> dict[str, object]:
    """Of SGD with momentum, after a step."""
    parameters = list(model.visual.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def save_bare(model: torch.nn.Module, path: Path) -> None:
    """RobustVLM (FARE, TeCoA), Sim-CLIP."""
    torch.save(visual(model), path)


def save_old_format(model: torch.nn.Module, path: Path) -> None:
    """As torch before 1.6 did."""
    torch.save(visual(model), path, _use_new_zipfile_serialization=False)


def save_wrapped(model: torch.nn.Module, path: Path) -> None:
    """A tower saved out of DataParallel around a wrapper."""
    torch.save({f"module.model.{name}": tensor for name, tensor in visual(model).items()}, path)


def save_tecoa(model: torch.nn.Module, path: Path) -> None:
    """TeCoA, PMG-AFT, TGA-ZSR, SAFT, APT: with an optimizer, a numpy scalar and the arguments of the run."""
    content = {
        "epoch": 3,
        "state_dict": OrderedDict(),
        "add_prompter": OrderedDict(),
        "vision_encoder_state_dict": OrderedDict(visual(model)),
        "best_acc1": np.float64(41.5),
        "optimizer": optimizer_state(model),
        "args": Namespace(train_eps=1.0, arch="vit_b32", root=Path("data")),
    }
    torch.save(content, path)


def save_advflyp(model: torch.nn.Module, path: Path) -> None:
    partial = {f"visual.{name}": tensor for name, tensor in visual(model).items()}
    torch.save({"epoch": 9, "state_dict": {}, "partial_state_dict": partial, "optimizer": optimizer_state(model)}, path)


def save_agft(model: torch.nn.Module, path: Path) -> None:
    torch.save({"modules": {"clip.visual": visual(model)}, "params": {}}, path)


def save_vision_transformer(model: torch.nn.Module, path: Path) -> None:
    """transformers' CLIPVisionModelWithProjection."""
    tensors = to_transformers({f"visual.{name}": tensor for name, tensor in visual(model).items()})
    torch.save(tensors, path)


TOWERS: dict[str, Callable[[torch.nn.Module, Path], None]] = {
    "bare": save_bare,
    "old": save_old_format,
    "wrapped": save_wrapped,
    "tecoa": save_tecoa,
    "advflyp": save_advflyp,
    "agft": save_agft,
    "transformers": save_vision_transformer,
}


def save_state_dict(model: torch.nn.Module, path: Path) -> None:
    """open_clip's training script, under DistributedDataParallel."""
    state = {f"module.{name}": tensor for name, tensor in state_of(model).items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer_state(model)}, path)


def save_average(model: torch.nn.Module, path: Path) -> None:
    """A moving average of the weights, and nothing else."""
    torch.save({"step": 3, "model_ema": {f"module.{name}": t for name, t in state_of(model).items()}}, path)


def save_whole_transformers(model: torch.nn.Module, path: Path) -> None:
    torch.save(to_transformers(state_of(model)), path)


WHOLES: dict[str, Callable[[torch.nn.Module, Path], None]] = {
    "state_dict": save_state_dict,
    "average": save_average,
    "transformers": save_whole_transformers,
}
