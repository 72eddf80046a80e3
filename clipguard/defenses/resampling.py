"""Crops, flips and resizes as products with matrices, one for the rows and one for the columns of each image.

All of them are separable and linear, so this is exact; and unlike the kernels of `grid_sample` and `interpolate`, its
gradient has the same bits whenever it is computed on a GPU, and crops may differ from image to image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, h, w) of images x (B, C, H, W), from weights of their rows (B, h, H) and columns (B, w, W)."""
    with torch.autocast(x.device.type, enabled=False):  # a search in half precision is of the classifier alone
        return rows[:, None] @ x @ columns[:, None].mT


def linear(start: Tensor, length: Tensor, out: int, size: int) -> Tensor:
    """Weights (N, out, size) that stretch a part of `size` pixels to `out`, by linear interpolation inside the part.

    Pixels are areas, as with `align_corners=False`.

    Args:
        start: (N,) whole numbers, the first pixel of the part.
        length: (N,) whole numbers of its pixels.
        out: pixels to make of them.
        size: of the image.
    """
    at = (torch.arange(out, device=start.device) + 0.5) * (length[:, None] / out) - 0.5
    at = torch.minimum(at.clamp_min(0), (length[:, None] - 1).float()) + start[:, None]
    return (1 - (at[:, :, None] - torch.arange(size, device=start.device)).abs()).clamp_min(0)


def nearest(start: Tensor, length: Tensor, out: int, size: int) -> Tensor:
    """Weights (N, out, size) that resize `size` pixels to `length`, nearest neighbours, and put them at `start` of
    `out`; the rest stays zero. `start` and `length` (N,) are whole numbers.
    """
    at = torch.arange(out, device=start.device) - start[:, None]
    source = at * size // length[:, None]
    inside = (at >= 0) & (at < length[:, None])
    pixels = torch.arange(size, device=start.device)
    return ((source[:, :, None] == pixels) & inside[:, :, None]).float()
