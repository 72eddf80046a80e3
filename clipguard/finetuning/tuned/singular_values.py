"""CLIP-SVD: the singular values of an image tower's linear layers are what is trained, as parametrisations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clipguard.core.errors import FinetuneError

Chosen = tuple[nn.Module, str, int]  # a module, its weight's name, and how many matrices are stacked in it


class SingularValues(nn.Module):
    """A weight W = U diag(S) V' of which S alone is trained (CLIP-SVD, Koleilat et al., arXiv 2509.03740).

    Computed as W + U diag(S - S0) V', S0 as S was at first: the same, but for the rounding of the decomposition, so
    that the tower begins as the very bits of the model. All of it is in float32, under mixed precision, too. The rank
    is full, where the published code rounds it down to a multiple of 4. Values may change their sign, as there.

    S is (parts, k): the stacked matrices of queries, keys and values are decomposed one by one.
    """

    def __init__(self, weight: Tensor, parts: int) -> None:
        super().__init__()
        matrices = weight.detach().float().reshape(parts, weight.shape[0] // parts, -1)
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        self.values = nn.Parameter(values.clone())
        # Parameters, too, so that `fsdp` divides them.
        self.first = nn.Parameter(values.clone(), requires_grad=False)
        self.left = nn.Parameter(left.contiguous(), requires_grad=False)
        self.right = nn.Parameter(right.contiguous(), requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            change = (self.left * (self.values - self.first).unsqueeze(1)) @ self.right
            return weight + change.view_as(weight)


def train_singular_values(visual: nn.Module) -> None:
    """Freeze a tower but for the singular values of its linear layers.

    These are queries, keys, values and output of attention, and the layers of the MLPs, as in the paper; in other
    towers what else is an `nn.Linear`, and convolutions of one pixel, which are linear layers, too. Patches, norms,
    biases, embeddings and a ViT's projection stay as they are.

    Raises:
        FinetuneError: when there is none.
    """
    chosen: list[Chosen] = []
    for path, module in visual.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            chosen.append((module, "in_proj_weight", 3))
        elif isinstance(module, nn.Linear):
            chosen.append((module, "weight", 3 if path.rpartition(".")[2] == "qkv" else 1))
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
            chosen.append((module, "weight", 1))
    if not chosen:
        raise FinetuneError("`train=svd` finds no linear layer in this image tower; choose another `train`.")
    visual.requires_grad_(False)
    for module, name, parts in chosen:
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, SingularValues(weight, parts))
