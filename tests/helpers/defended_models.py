"""Small classifiers to put defences around, whose numbers can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, CLASSES, DIM = 6, 4, 5


class LinearClip(nn.Module):
    """Embeddings W x of images (B, 3, 6, 6), or tanh(W x) if curved; cosines with random class texts times 10."""

    least_rows = 1

    def __init__(self, seed: int = 0, *, curved: bool = False) -> None:
        super().__init__()
        self.curved = curved
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(DIM, 3 * SIDE * SIDE, generator=generator))
        self.register_buffer("text", F.normalize(torch.randn(DIM, CLASSES, generator=generator), dim=0))

    def embed(self, pixels: Tensor, *, normalize: bool = True) -> Tensor:
        features = pixels.flatten(1) @ self.weight.T
        features = features.div(4).tanh() if self.curved else features
        return F.normalize(features, dim=1) if normalize else features

    def score(self, features: Tensor) -> Tensor:
        return 10 * features @ self.text

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.embed(pixels))


def images(n: int = 3, seed: int = 1) -> Tensor:
    """(n, 3, 6, 6) in [0.1, 0.9]."""
    return 0.1 + 0.8 * torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
