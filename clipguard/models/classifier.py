"""A CLIP model as an ordinary classifier: pixels in [0,1] in, one logit per class out, differentiable in the pixels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from clipguard.models.cosine import exact_cosines, on_grid
from clipguard.models.preprocessing import Preprocessing, resize_pixels

Resolution = Literal["model", "native"]


class ZeroShotClassifier(nn.Module):
    """Image tower, normalisation, fixed class-text matrix and logit scale.

    Always in eval mode, all parameters frozen; only the pixels can get a gradient. The CLIP model is shared with the
    `LoadedModel` it came from: moving one moves the other, and making a classifier freezes a model in training.

    Args:
        model: an open_clip model with `encode_image` and `logit_scale`.
        text: class embeddings, float32 (D, C), columns of unit length.
        preprocessing: the model's normalisation, size and resize mode.
        resolution: "model" expects pixels of the model's size; "native" resizes inside, as open_clip would.
    """

    # Of a pass on a CPU: the matrix products and convolutions of fewer take other paths, which round differently.
    least_rows = 16
    mean: Tensor
    std: Tensor
    text: Tensor
    text_grid: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None

    def __init__(self, model: nn.Module, text: Tensor, preprocessing: Preprocessing, resolution: Resolution) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.resolution: Resolution = resolution
        device = text.device
        self.register_buffer("mean", torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1))
        self.register_buffer("text", text.detach().float())
        self.register_buffer("text_grid", on_grid(self.text))
        self.register_buffer("logit_scale", _scalar(model.logit_scale).exp())
        bias = getattr(model, "logit_bias", None)
        self.register_buffer("logit_bias", None if bias is None else _scalar(bias))
        self.memory_format = fast_memory_format(model)
        model.to(memory_format=self.memory_format)
        self.requires_grad_(False)
        self.eval()

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return self.text.shape[1]

    def train(self, mode: bool = True) -> ZeroShotClassifier:  # noqa: ARG002
        """Stay in eval mode: batch norm or dropout in training mode would make an attack fight a moving target."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C), float32, of pixels (B, 3, H, W) in [0,1]; under autocast only the image tower is cast."""
        return self.score(self.embed(pixels))

    def score(self, features: Tensor) -> Tensor:
        """Logits (B, C), float32, of image embeddings (B, D) of unit length."""
        with torch.autocast(features.device.type, enabled=False):
            logits = self.logit_scale * exact_cosines(features.float(), self.text_grid)
            return logits if self.logit_bias is None else logits + self.logit_bias

    def embed(self, pixels: Tensor, *, normalize: bool = True) -> Tensor:
        """Image embeddings (B, D) of pixels (B, 3, H, W) in [0,1], of unit length unless `normalize` is False."""
        if self.resolution == "native":
            pixels = resize_pixels(pixels, self.preprocessing)
        normalized = ((pixels - self.mean) / self.std).contiguous(memory_format=self.memory_format)
        features: Tensor = self.model.encode_image(normalized, normalize=normalize)  # type: ignore[operator]
        return features


def fast_memory_format(model: nn.Module) -> torch.memory_format:
    """Convolutional towers run faster with channels last; the one convolution of a ViT gains nothing."""
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    return torch.channels_last if convolutions > 1 else torch.contiguous_format


def _scalar(value: object) -> Tensor:
    """A frozen float32 copy, without dimensions, of a model's logit scale or bias (stored as () or (1,))."""
    assert isinstance(value, Tensor)
    return value.detach().float().reshape(()).clone()
