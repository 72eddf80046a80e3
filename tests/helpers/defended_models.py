"""Small classifiers to put defences around, whose numbers can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.defenses.base import Classifier, Defense, Prompts, View

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


class TextTower(nn.Module):
    """Embeddings of texts by their lengths (N, 1)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(1, DIM, generator=generator))
        self.bias = nn.Parameter(torch.randn(DIM, generator=generator))
        self.passes = 0

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.passes += 1
        return tokens.float().div(20) @ self.weight + self.bias


def prompts() -> Prompts:
    """A text side for `LinearClip`."""
    names = [str(n) for n in range(CLASSES)]
    return Prompts(TextTower(), lambda texts: torch.tensor([[len(text)] for text in texts]), names, ["a {}"])


def slope(defense: Defense, classifier: Classifier, x: Tensor, direction: Tensor, step: float = 1e-2) -> Tensor:
    """(classes,) derivatives of the defended logits of one image along a direction, by central differences."""
    ends = [defense.logits(classifier, x + sign * step * direction, View())[0] for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


def claimed_slope(defense: Defense, classifier: Classifier, x: Tensor, direction: Tensor, view: View) -> Tensor:
    """(classes,) the same by the gradient that the view asks for."""
    leaf = x.clone().requires_grad_()
    logits = defense.logits(classifier, leaf, view)[0]
    gradients = [torch.autograd.grad(logit, leaf, retain_graph=True)[0] for logit in logits]
    return torch.stack([(gradient * direction).sum() for gradient in gradients])
