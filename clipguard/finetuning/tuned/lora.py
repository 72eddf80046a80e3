"""LoRA: low-rank updates as parametrisations of an image tower's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clipguard.core.errors import FinetuneError


class LowRank(nn.Module):
    """A weight plus a trained matrix of low rank, W + B A (LoRA, Hu et al. 2022, arXiv 2106.09685; no extra scale).

    A (rank, in) is drawn as the paper's code does, B (out, rank) is zero at first. As a parametrisation of the weight
    it works wherever the weight is used, in the fused attention of open_clip's ViTs too, and what is merged is exactly
    what was computed with.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        flat = weight.flatten(1)
        rank = min(rank, *flat.shape)
        self.down = nn.Parameter(torch.empty(rank, flat.shape[1]))
        self.up = nn.Parameter(torch.zeros(flat.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_lora(visual: nn.Module, rank: int) -> None:
    """Freeze the tower, and let every trainable matrix of its linear, attention and plain convolution layers change.

    Raises:
        FinetuneError: when there is none.
    """
    chosen = [(m, n, p) for m in visual.modules() for n, p in m.named_parameters(recurse=False) if _is_matrix(m, n, p)]
    if not chosen:
        raise FinetuneError("`lora` finds no matrix among the weights to train; leave it out.")
    visual.requires_grad_(False)
    for module, name, weight in chosen:
        parametrize.register_parametrization(module, name, LowRank(weight, rank).to(weight.device))


def _is_matrix(module: nn.Module, name: str, weight: nn.Parameter) -> bool:
    linear = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    attention = isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight"
    return weight.requires_grad and (attention or (linear and name == "weight"))


def merge_changes(visual: nn.Module) -> None:
    """Make what `add_lora` or `train_singular_values` added part of the plain weights."""
    for module in list(visual.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
