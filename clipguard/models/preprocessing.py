"""What is done to an image before a model sees it: to a PIL image, and to a batch of pixels in [0,1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Resize
from torchvision.transforms.functional import to_tensor
from torchvision.transforms.v2 import functional as tvf


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


def preprocessing_of(model: nn.Module, preprocess_cfg: Mapping[str, Any]) -> Preprocessing:
    """What is done to images before a built model, all of it spelled out.

    Args:
        model: an open_clip model, with what open_clip made of the config as `visual.preprocess_cfg`.
        preprocess_cfg: the config that it was built from, for `resize_size`, which open_clip does not know.
    """
    resize_size = preprocess_cfg.get("resize_size")
    config: dict[str, Any] = model.visual.preprocess_cfg  # type: ignore[union-attr,assignment]
    size = config["size"]
    return Preprocessing(
        image_size=(int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1])),
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
        # open_clip evaluates "random" (a training setting) as bicubic.
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        resize_mode=config["resize_mode"],
        fill_color=int(config["fill_color"]),
        resize_size=None if resize_size is None else (resize_size[0], resize_size[1]),
    )


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    return float(value[0]), float(value[1]), float(value[2])


def describe_resize(p: Preprocessing) -> str:
    """The resize mode, and to which size where that is not the model's, for people."""
    if p.resize_size is None:
        return p.resize_mode
    height, width = p.resize_size
    return f"{p.resize_mode} to {height if p.resize_mode == 'shortest' else f'{height}x{width}'}, then the centre"


def pixels_of_model_size(p: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A picklable function from a PIL image to pixels (3, H, W), float32 in [0,1], of the model's size.

    It is open_clip's own evaluation transform without its normalisation or, where the centre is cut out of another
    size, what transformers does.
    """
    if p.cuts:
        return CutPixels(p)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(p.image_size, "RGB", p.mean, p.std, p.interpolation, p.resize_mode, p.fill_color)
    return Compose(image_transform_v2(config, is_train=False).transforms[:-1])  # type: ignore[no-any-return]


def to_native_pixels(image: Image.Image) -> Tensor:
    """An image at its own size as RGB pixels (3, H, W), float32 in [0,1]."""
    pixels: Tensor = to_tensor(image.convert("RGB"))
    return pixels


def as_8bit(pixels: Tensor) -> Tensor:
    """Preprocessed pixels in [0,1] as uint8, of the same shape. Exact: they are 8-bit levels divided by 255."""
    return pixels.mul(255).round_().byte()


def from_8bit(levels: Tensor) -> Tensor:
    """Pixels in [0,1], float32, from 8-bit levels: to the bit what `as_8bit` was given, on any device."""
    return levels.float().div_(torch.full((), 255.0, device=levels.device))  # by a plain number, CUDA rounds twice


@dataclass(frozen=True)
class CutPixels:
    """An image as pixels (3, H, W) in [0,1], resized (or not) and its centre cut out, as transformers does it."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        p, image = self.preprocessing, image.convert("RGB")
        if p.resize_size is not None:
            edge = p.resize_size[0] if p.resize_mode == "shortest" else list(p.resize_size)
            image = Resize(edge, interpolation=InterpolationMode(p.interpolation))(image)
        return cut_centre(to_native_pixels(image), p.image_size)


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
