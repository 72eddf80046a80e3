"""The standard augmentation: a random crop, mirrored in half of the cases."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

SMALLEST_CROP = 0.6  # share of the image's area
ASPECTS = (3 / 4, 4 / 3)  # least and largest width over height of a crop


def crop_and_mirror(pixels: Tensor, key: int) -> Tensor:
    """A random part of the image (Szegedy et al. 2015) at its size, mirrored in half of the cases.

    Args:
        pixels: (3, H, W) in [0,1].
        key: what the randomness is seeded with.

    Returns:
        (3, H, W) in [0,1].
    """
    share, aspect, top, left, mirror = torch.rand(5, generator=torch.Generator().manual_seed(key)).tolist()
    height, width = pixels.shape[-2:]
    area = (SMALLEST_CROP + (1 - SMALLEST_CROP) * share) * height * width
    ratio = math.exp(math.log(ASPECTS[0]) + aspect * math.log(ASPECTS[1] / ASPECTS[0])) * width / height
    h, w = min(height, round(math.sqrt(area / ratio))), min(width, round(math.sqrt(area * ratio)))
    y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
    cropped: Tensor = tvf.resized_crop(pixels, y, x, h, w, [height, width], antialias=True)
    return cropped.flip(-1) if mirror < 0.5 else cropped
