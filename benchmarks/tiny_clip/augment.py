"""Random views of drawings that make a new artist's hand look familiar. Everything is batched tensor work."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from emoji import on_background

LUMA = torch.tensor([0.299, 0.587, 0.114])


def random_affine(rgba: torch.Tensor, size: int, g: torch.Generator, strength: float) -> torch.Tensor:
    """Rotation up to 20 degrees, zoom 0.7 to 1.2, aspect, shear, shift and mirror of (B, 4, H, W) at a new size.

    All but the mirror shrink with `strength` towards the drawing as it is.
    """
    n = len(rgba)
    u = torch.rand(n, 7, generator=g)
    neutral = torch.tensor([0.5, math.log(1 / 0.7) / math.log(1.2 / 0.7), 0.5, 0.5, 0.0, 0.5, 0.5])
    varied = torch.tensor([True, True, True, True, False, True, True])
    u = torch.where(varied, neutral + strength * (u - neutral), u)
    angle = (u[:, 0] - 0.5) * math.radians(40)
    zoom = torch.exp(-(u[:, 1] * math.log(1.2 / 0.7) + math.log(0.7)))
    aspect = torch.exp((u[:, 2] - 0.5) * 0.4)
    shear = (u[:, 3] - 0.5) * 0.4
    mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.empty(n, 2, 3)
    theta[:, 0, 0] = mirror * zoom * aspect * cos
    theta[:, 0, 1] = zoom * (shear - sin)
    theta[:, 1, 0] = mirror * zoom * sin
    theta[:, 1, 1] = zoom / aspect * cos
    theta[:, :, 2] = (u[:, 5:7] - 0.5) * 0.3
    grid = F.affine_grid(theta, [n, 4, size, size], align_corners=False)
    # 64 -> 48 pixels is a mild reduction: a light blur first stands in for antialiasing.
    return F.grid_sample(F.avg_pool2d(rgba, 3, 1, 1) * 0.5 + rgba * 0.5, grid, align_corners=False)


def random_background(n: int, size: int, g: torch.Generator, strength: float) -> torch.Tensor:
    """Half white, a quarter one colour, a quarter a blurry pattern (less of both with strength): (n, 3, size, size)."""
    colour = torch.rand(n, 3, 1, 1, generator=g)
    pattern = F.interpolate(torch.rand(n, 3, 4, 4, generator=g), size=(size, size), mode="bilinear")
    choice = torch.rand(n, 1, 1, 1, generator=g) * (0.5 + 0.5 * strength)
    plain = torch.where(choice < 0.5, torch.ones(()), colour).expand(n, 3, size, size)
    return torch.where(choice < 0.75, plain, pattern)


def colour_jitter(x: torch.Tensor, g: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Saturation, hue, contrast and brightness as one 3x3 matrix an image; some images lose all colour."""
    n = len(x)
    u = torch.rand(n, 5, generator=g)
    saturation = torch.where(u[:, 0] < 0.1 * strength, 0.0, 1 + (u[:, 1] - 0.5) * 1.2 * strength)
    hue = (u[:, 2] - 0.5) * math.pi * 0.5 * strength
    contrast = torch.exp((u[:, 3] - 0.5) * 0.8 * strength)
    shift = (u[:, 4] - 0.5) * 0.4 * strength
    grey = LUMA.expand(3, 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = hue.cos().view(-1, 1, 1), hue.sin().view(-1, 1, 1)
    rotation = cos * torch.eye(3) + sin * cross + (1 - cos) / 3
    s = saturation.view(-1, 1, 1)
    matrix = contrast.view(-1, 1, 1) * (s * torch.eye(3) + (1 - s) * grey) @ rotation
    out = torch.einsum("bij,bjhw->bihw", matrix, x - 0.5) + 0.5 + shift.view(-1, 1, 1, 1)
    return out.clamp(0, 1)


def blur_or_noise(x: torch.Tensor, g: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """A fifth of the images softened, a fifth with noise, a fifth with a grey patch over a part of them.

    With a `strength` below 1 that share of the images, the others as they are.
    """
    n, _, h, w = x.shape
    u = torch.rand(n, 1, 1, 1, generator=g)
    u = torch.where(torch.rand(n, 1, 1, 1, generator=g) < strength, u, torch.full_like(u, 0.5))
    x = torch.where(u < 0.2, F.avg_pool2d(x, 3, 1, 1), x)
    x = torch.where((u >= 0.2) & (u < 0.4), x + 0.08 * torch.randn(x.shape, generator=g), x)
    centre = torch.rand(n, 2, generator=g)
    rows = (torch.arange(h).view(1, -1) / h - centre[:, :1]).abs() < 0.17
    columns = (torch.arange(w).view(1, -1) / w - centre[:, 1:]).abs() < 0.17
    patch = rows.view(n, 1, h, 1) & columns.view(n, 1, 1, w) & (u >= 0.8)
    return torch.where(patch, torch.rand(n, 3, 1, 1, generator=g), x).clamp(0, 1)


def random_view(rgba: torch.Tensor, size: int, g: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """(B, 4, 64, 64) premultiplied drawings -> (B, 3, size, size) views in [0,1]."""
    moved = random_affine(rgba, size, g, strength)
    background = random_background(len(rgba), size, g, strength)
    return colour_jitter(on_background(moved, background), g, strength)
