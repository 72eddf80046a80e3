"""Cosines of images and classes that are exact sums: a row's bits are the same in any batch, on any processor.

A library's product of two matrices adds in an order that it chooses by the processor, the shapes and where in memory a
row begins; so the last digits of an image's logits depended on its neighbours. Here both factors are first rounded to
multiples of 2^-26. Rows and columns have unit length, so every product is a multiple of 2^-52 and every partial sum at
most 2 in absolute value (Cauchy-Schwarz): float64 holds them all exactly, and then the order cannot matter. The
rounding moves a cosine by about 6e-9, less than its last digit in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BITS = 26  # of either factor, after the point
UNIT = 2.0**-BITS
L1_UNIT = 2.0**-20  # in which the sum of a gradient's absolute values is bounded


def on_grid(unit: Tensor) -> Tensor:
    """Values of absolute value up to 1 in units of 2^-26, rounded: whole numbers, float64, of the same shape."""
    return (unit.double() / UNIT).round()


def exact_cosines(features: Tensor, text_grid: Tensor) -> Tensor:
    """Cosines (B, C), float32, of unit rows (B, D) and unit columns, `on_grid` (D, C); differentiable in the rows.

    The gradient is an exact sum of rounded terms, too. NaN and infinity in a row make that row NaN.
    """
    cosines: Tensor = _ExactCosines.apply(features, text_grid)
    return cosines


class _ExactCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, text_grid: Tensor) -> Tensor:
        ctx.save_for_backward(text_grid)
        return (on_grid(features) @ text_grid * UNIT**2).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (text_grid,) = ctx.saved_tensors
        grad = grad.double()
        largest = grad.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        # Whole numbers again: at least the sum of the absolute values, whatever the order of adding.
        total = (grad.abs() / largest / L1_UNIT).ceil().sum(dim=1, keepdim=True) * (largest * L1_UNIT)
        total = torch.maximum(total, largest)  # not 0, for a row of zeros
        scale = total / torch.frexp(total).mantissa  # a power of two above it, since the mantissa is below 1
        return (on_grid(grad / scale) @ text_grid.T * (scale * UNIT**2)).float(), None
