"""Learned vectors among the patches of an image tower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipguard.core.errors import ModelError

ATTACHED = "learned_prompts"  # the name of the vectors among the parts of the tower


class VisionSize(NamedTuple):
    """Of an image tower: its blocks, and the width of their tokens."""

    blocks: int
    width: int


def vision_size(visual: Any, name: str) -> VisionSize:
    """The size of an image tower that can take vectors among its patches; `name`: the model, for messages.

    Raises:
        ModelError: for any tower but open_clip's own ViT.
    """
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer) or not visual.transformer.batch_first:
        raise ModelError(
            f"Prompts in the image tower stand among the patches of open_clip's own ViT; that of {name} is "
            f"{type(visual).__name__}: choose another model, or method apt, whose prompts are in the text alone."
        )
    return VisionSize(len(visual.transformer.resblocks), visual.class_embedding.shape[-1])


class VisionPrompts(nn.Module, ABC):
    """Vectors behind the patches of a ViT, as in MaPLe (Khattak et al., CVPR 2023, arXiv 2210.03117, section 3.2).

    They enter before the first norm, and at the entrance of deeper blocks they are put in place of what the block
    before made of them. What comes out of the last block at their places is dropped, so that pooling sees none of it.
    """

    @abstractmethod
    def vision(self) -> Tensor:
        """(blocks, M, width)."""

    def attach(self, visual: nn.Module) -> None:
        """Become a part of an image tower (of a ViT of open_clip); from then on all its passes have the prompts."""
        tower: Any = visual
        tower.register_module(ATTACHED, self)
        tower.ln_pre.register_forward_pre_hook(self._append)
        tower.transformer.register_forward_hook(self._drop)
        for number, block in enumerate(tower.transformer.resblocks[1 : len(self.vision())], 1):
            block.register_forward_pre_hook(partial(self._replace, number))

    def _append(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return torch.cat([inputs[0], self._rows(0, inputs[0])], dim=1), *inputs[1:]

    def _replace(self, number: int, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        own = self._rows(number, inputs[0])
        return torch.cat([inputs[0][:, : -own.shape[1]], own], dim=1), *inputs[1:]

    def _drop(self, _module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out[:, : -self.vision().shape[1]]

    def _rows(self, number: int, x: Tensor) -> Tensor:
        """(B, M, width) of block `number`."""
        return self.vision()[number].to(x.dtype).expand(len(x), -1, -1)


class FixedVisionPrompts(VisionPrompts):
    """Vectors (blocks, M, width) that are no longer trained."""

    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)

    def vision(self) -> Tensor:
        """As given."""
        return self.vectors
