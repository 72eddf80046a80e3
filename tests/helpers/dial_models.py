"""A classifier whose embedding is a hand of a dial, which one number of the image turns: every outcome is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.defenses.base import Prompts

SCALE = 10.0  # of the logits
Reading = Callable[[Tensor], Tensor]


def brightness(x: Tensor) -> Tensor:
    """(B,) means of images (B, 3, H, W)."""
    return x.mean(dim=(1, 2, 3))


def contrast(x: Tensor) -> Tensor:
    """(B,) mean squares of how far values are from one half."""
    return (x - 0.5).square().mean(dim=(1, 2, 3))


def checkers(side: int) -> Tensor:
    """(side, side) of 1 and -1 in turn."""
    place = torch.arange(side)
    return 1.0 - 2 * ((place[:, None] + place) % 2)


def grain(x: Tensor) -> Tensor:
    """(B,) how far images go up and down from pixel to pixel: what a blur takes away and a mirror turns around."""
    return (x * checkers(x.shape[-1])).mean(dim=(1, 2, 3))


class Dial(nn.Module):
    """Embeds an image as (cos a, sin a), a = 2 pi (reading - centre) / period; classes are directions.

    Args:
        reading: images (B, 3, H, W) -> (B,).
        centre: reading at which the hand points at 0 degrees.
        period: change of the reading that turns it once.
        degrees: direction of each class.
    """

    least_rows = 1

    def __init__(self, reading: Reading, centre: float, period: float, degrees: Sequence[float]) -> None:
        super().__init__()
        angles = torch.tensor(degrees) * math.pi / 180
        self.register_buffer("text", torch.stack([angles.cos(), angles.sin()]))
        self.reading, self.centre, self.period = reading, centre, period

    def embed(self, pixels: Tensor, *, normalize: bool = True) -> Tensor:
        features = self._features(pixels)
        return F.normalize(features, dim=1) if normalize else features

    def _features(self, pixels: Tensor) -> Tensor:
        angle = 2 * math.pi * (self.reading(pixels) - self.centre) / self.period
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def score(self, features: Tensor) -> Tensor:
        return SCALE * features @ self.text

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.embed(pixels))


class Stairs(nn.Module):
    """Class k where k of the bounds are below the reading; logits rise with it, but that of class 0, which is 0.

    Args:
        reading: images (B, 3, H, W) -> (B,).
        bounds: ascending.
    """

    def __init__(self, reading: Reading, *bounds: float) -> None:
        super().__init__()
        self.reading, self.bounds = reading, bounds

    def forward(self, pixels: Tensor) -> Tensor:
        above = [100 * (self.reading(pixels) - bound) for bound in self.bounds]
        return torch.stack([torch.zeros_like(above[0]), *above], dim=1).cumsum(dim=1)


class Worded(nn.Module):
    """Two classes of an open_clip text tower; embeddings turn from one text toward the other as the reading rises.

    Args:
        reading: images (B, 3, 16, 16) -> (B,).
        bound: reading from which on it is the second class.
    """

    least_rows = 1

    def __init__(self, reading: Reading, bound: float) -> None:
        super().__init__()
        vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
        text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)
        clip.logit_scale.fill_(3)
        names, tokenizer = ["cat", "dog"], open_clip.get_tokenizer("ViT-B-32", context_length=12)
        self.prompts = Prompts(clip, tokenizer, names, ["a photo of a {}."])
        self.register_buffer("text", self.prompts.encode([f"a photo of a {name}." for name in names]).T)
        self.clip, self.reading, self.bound = clip, reading, bound

    def embed(self, pixels: Tensor, *, normalize: bool = True) -> Tensor:
        middle, across = (F.normalize(self.text @ torch.tensor(signs), dim=0) for signs in ((1.0, 1.0), (-1.0, 1.0)))
        features = middle + 10 * (self.reading(pixels) - self.bound)[:, None] * across
        return F.normalize(features, dim=1) if normalize else features

    def score(self, features: Tensor) -> Tensor:
        return self.clip.logit_scale.exp() * features @ self.text

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.embed(pixels))


class NoWords(nn.Module):
    """Says (1, 0) to every text."""

    def __init__(self) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.tensor([1.0, 0.0]), requires_grad=False)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.direction.expand(len(tokens), -1)


def at_zero_degrees() -> Prompts:
    """A text side for `Dial`: every text is at 0 degrees."""
    return Prompts(NoWords(), lambda texts: torch.zeros(len(texts), 1), ["one", "another"], ["{}"])
