"""The image tower in training: pixels in [0,1] -> embeddings; which of its weights are trained, and how."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.models.classifier import Preprocessing, fast_memory_format
from clipguard.models.cosine import exact_cosines, on_grid


class ImageTower(nn.Module):
    """Normalisation and the image tower of an open_clip model: pixels (B, 3, H, W) in [0,1] -> embeddings (B, D).

    Embeddings are float32 and not normalised. The tower is shared with the model it was taken from. Batch norms keep
    its statistics, in training too: with those of the batch, the tower that learns would be another than the one that
    the training attack and every evaluation see.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.memory_format = fast_memory_format(visual)
        self.visual = visual.to(memory_format=self.memory_format)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ImageTower:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        out = self.visual(((pixels - self.mean) / self.std).contiguous(memory_format=self.memory_format))
        features: Tensor = out[0] if isinstance(out, tuple) else out  # CoCa's tower gives its tokens, too
        return features.float()


class TunedClassifier(nn.Module):
    """The image tower in training as a classifier, for the attack engine: pixels in [0,1] -> logits (B, C)."""

    def __init__(self, tower: ImageTower, text: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.tower, self.text_grid, self.logit_scale = tower, on_grid(text.T), logit_scale

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logit_scale * exact_cosines(F.normalize(self.tower(pixels), dim=-1), self.text_grid)


def choose_weights(visual: nn.Module, config: FinetuneConfig) -> None:
    """Set which parameters are trained: all, those of the last layer groups, or low-rank changes to the matrices.

    Groups are open_clip's (`lock`): in a ViT the projection, then block by block from the last, then the patches.
    Raises FinetuneError where the architecture cannot be locked in part or has no matrix to change.
    """
    visual.requires_grad_(True)
    groups = config.unlocked_groups()
    if groups is not None:
        try:
            visual.lock(unlocked_groups=groups)  # type: ignore[operator]
        except (AssertionError, KeyError) as error:
            raise FinetuneError(
                f"--train {config.train}: open_clip cannot lock {type(visual).__name__} so; use --train visual."
            ) from error
    if config.lora:
        add_lora(visual, config.lora)


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

    Raises FinetuneError when there is none.
    """
    chosen = [(m, n, p) for m in visual.modules() for n, p in m.named_parameters(recurse=False) if _is_matrix(m, n, p)]
    if not chosen:
        raise FinetuneError("--lora finds no matrix among the weights to train; leave it out.")
    visual.requires_grad_(False)
    for module, name, weight in chosen:
        parametrize.register_parametrization(module, name, LowRank(weight, rank).to(weight.device))


def _is_matrix(module: nn.Module, name: str, weight: nn.Parameter) -> bool:
    linear = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    attention = isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight"
    return weight.requires_grad and (attention or (linear and name == "weight"))


def merge_lora(visual: nn.Module) -> None:
    """Make what `add_lora` added part of the plain weights."""
    for module in list(visual.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
