"""The image tower in training: pixels in [0,1] -> embeddings; which of its weights are trained, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.tuned.lora import add_lora
from clipguard.finetuning.tuned.patch_tokens import giving_patches, project
from clipguard.finetuning.tuned.singular_values import train_singular_values
from clipguard.models.classifier import fast_memory_format
from clipguard.models.cosine import exact_cosines, on_grid
from clipguard.models.preprocessing import Preprocessing


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
        self._through: Callable[[Tensor], Any] | None = None
        self.visual = visual.to(memory_format=self.memory_format)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ImageTower:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @contextmanager
    def through(self, visual: Callable[[Tensor], Any] | None) -> Iterator[None]:
        """Meanwhile normalised pixels pass through this function in place of `visual`: the same, compiled."""
        self._through = visual
        try:
            yield
        finally:
            self._through = None

    def forward(self, pixels: Tensor) -> Tensor:
        out = self._pass(pixels)
        features: Tensor = out[0] if isinstance(out, tuple) else out  # CoCa's tower gives its tokens, too
        return features.float()

    def with_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D) and patch tokens (B, N, D), float32, from one pass; after `give_patches`."""
        with giving_patches(self.visual):
            out = self._pass(pixels)
        embeddings, patches = project(self.visual, out) if self._through else out  # which leaves hooks out
        return embeddings.float(), patches.float()

    def _pass(self, pixels: Tensor) -> Any:
        visual = self._through or self.visual
        return visual(((pixels - self.mean) / self.std).contiguous(memory_format=self.memory_format))


class FrozenTower(ImageTower):
    """An image tower whose weights are not trained: they are in no checkpoint, and none needs to have them."""

    def __init__(self, visual: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__(visual, preprocessing)
        self.register_load_state_dict_post_hook(_miss_nothing)  # type: ignore[no-untyped-call]

    def state_dict(self, *_: Any, destination: Any = None, **__: Any) -> Any:
        """Nothing of its own."""
        return {} if destination is None else destination


def _miss_nothing(_tower: nn.Module, incompatible: Any) -> None:
    """After loading a `TunedModel`, or its average: what is not there of its image tower was not saved."""
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if "image." not in key]


class TunedClassifier(nn.Module):
    """The image tower in training as a classifier, for the attack engine: pixels in [0,1] -> logits (B, C)."""

    def __init__(self, tower: ImageTower, text: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.tower, self.text_grid, self.logit_scale = tower, on_grid(text.T), logit_scale

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logit_scale * exact_cosines(F.normalize(self.tower(pixels), dim=-1), self.text_grid)


def choose_weights(visual: nn.Module, config: FinetuneConfig) -> None:
    """Set which parameters are trained: all, those of the last groups, singular values, or low-rank changes.

    Groups are open_clip's (`lock`): in a ViT the projection, then block by block from the last, then the patches.

    Raises:
        FinetuneError: where the architecture cannot be locked in part or has no matrix to change.
    """
    visual.requires_grad_(True)
    if config.train == "svd":
        train_singular_values(visual)
        return
    groups = config.unlocked_groups()
    if groups is not None:
        try:
            visual.lock(unlocked_groups=groups)  # type: ignore[operator]
        except (AssertionError, KeyError) as error:
            raise FinetuneError(
                f"`train={config.train}`: open_clip cannot lock {type(visual).__name__} so; use `train=visual`."
            ) from error
    if config.lora:
        add_lora(visual, config.lora)


def checkpoint_gradients(visual: nn.Module) -> None:
    """Keep activations at the borders of blocks alone, and compute those between once more in the backward pass.

    Raises:
        FinetuneError: where open_clip has no such blocks.
    """
    with quiet_libraries():  # of timm's towers, some say in the log that they cannot
        getattr(visual, "set_grad_checkpointing", lambda: None)()
    if not any(getattr(module, "grad_checkpointing", False) for module in visual.modules()):
        raise FinetuneError(
            f"`grad_checkpointing`: open_clip cannot do it for {type(visual).__name__}; leave it out, and use"
            " `batch_size=auto` to save memory."
        )
