"""A CLIP model as an ordinary classifier: pixels in [0,1] in, one logit per class out, differentiable in the pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from clipguard.models.cosine import exact_cosines, on_grid

Resolution = Literal["model", "native"]


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the model: open_clip's `PreprocessCfg` with all values spelled out.

    Beyond that, as transformers' image processors do: `resize_size`, and `resize_mode` "none".
    """

    image_size: tuple[int, int]  # (H, W)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"  # or longest, squash; "none": the centre of image_size is cut out as it is
    fill_color: int = 0  # 0..255, the padding of resize_mode "longest"
    resize_size: tuple[int, int] | None = None  # (H, W) to resize to before the centre is cut out; None: image_size

    @property
    def cuts(self) -> bool:
        """Whether the centre is cut out of images of another size than the model's, as transformers does it."""
        return self.resize_size is not None or self.resize_mode == "none"

    def to_dict(self) -> dict[str, Any]:
        """Every value by name. `resize_size` only where there is one: the store's keys for all others stay theirs."""
        values = asdict(self)
        if self.resize_size is None:
            del values["resize_size"]
        return values


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
        features = self.embed(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
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


def resize_pixels(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """open_clip's evaluation resize on tensors: (B, 3, h, w) in [0,1] -> (B, 3, H, W) in [0,1], differentiable.

    Antialiased, like open_clip's own on PIL images, and clamped as those are, since bicubic overshoots; unlike them
    not rounded to 8 bits. Pixels already of the model's size come back unchanged.
    """
    size, mode = preprocessing.image_size, preprocessing.resize_mode
    bilinear = preprocessing.interpolation == "bilinear"
    if preprocessing.cuts:
        to = preprocessing.resize_size
        if to is not None:
            pixels = _resize(pixels, to if mode == "squash" else _shortest_size(pixels, to[0]), bilinear)
        return cut_centre(pixels, size)
    if mode == "squash":
        return _resize(pixels, size, bilinear)
    if mode == "longest":
        resized = _resize(pixels, _scaled_size(pixels, size, longest=True), bilinear)
        return _centre_pad(resized, size, preprocessing.fill_color / 255)
    if size[0] == size[1]:
        return _centre_crop(_resize(pixels, _shortest_size(pixels, size[0]), bilinear), size)
    # open_clip passes no interpolation here, so it is bicubic whatever the config says.
    return _centre_crop(_resize(pixels, _scaled_size(pixels, size, longest=False), False), size)


def _resize(pixels: Tensor, size: tuple[int, int], bilinear: bool) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    interpolation = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
    resized: Tensor = tvf.resize(pixels, list(size), interpolation=interpolation, antialias=True)
    return resized.clamp(0, 1)


def _shortest_size(pixels: Tensor, target: int) -> tuple[int, int]:
    """torchvision's `Resize(int)`: the shorter edge becomes `target`, the longer is rounded down."""
    height, width = pixels.shape[-2:]
    if height <= width:
        return target, int(target * width / height)
    return int(target * height / width), target


def _scaled_size(pixels: Tensor, size: tuple[int, int], *, longest: bool) -> tuple[int, int]:
    """open_clip's `ResizeKeepRatio`: one ratio for both edges, by the edge that needs the larger or smaller one."""
    height, width = pixels.shape[-2:]
    ratios = (height / size[0], width / size[1])
    ratio = max(ratios) if longest else min(ratios)
    return round(height / ratio), round(width / ratio)


def _centre_crop(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    cropped: Tensor = tvf.center_crop(pixels, list(size))
    return cropped


def cut_centre(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """transformers' centre crop: (..., h, w) -> (..., H, W). The odd pixel goes right and below, the padding is black.

    open_clip's (torchvision's) stands one pixel further where 3, 7, 11 ... pixels are left over.
    """
    height, width = pixels.shape[-2:]
    pixels = _centre_pad(pixels, (max(size[0], height), max(size[1], width)), 0.0)
    top, left = max(height - size[0], 0) // 2, max(width - size[1], 0) // 2
    return pixels[..., top : top + size[0], left : left + size[1]]


def _centre_pad(pixels: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """open_clip's `center_crop_or_pad` for images no larger than `size`: the odd pixel goes right and below."""
    down, across = size[0] - pixels.shape[-2], size[1] - pixels.shape[-1]
    padded: Tensor = tvf.pad(pixels, [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2], fill=fill)
    return padded
