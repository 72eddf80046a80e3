"""Small models whose robustness is known or quickly found, and one way to run the engine on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome
from clipguard.attacks.methods.apgd import APGD, APGDTargeted
from clipguard.attacks.methods.fab import FABTargeted
from clipguard.attacks.methods.square import Square
from clipguard.attacks.recipes import Recipe, parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.eps import Norm

# All stages of AutoAttack with few steps: `engine` and `run` know it by name.
SHORT_SUITE = Recipe(
    "short-suite",
    (
        APGD(iterations=6),
        APGDTargeted(iterations=5, targets=2),
        FABTargeted(iterations=5, targets=2),
        Square(queries=15),
    ),
)


class Linear(nn.Module):
    """Pixels -> weight @ pixels + bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class SmallConv(nn.Module):
    """A random convolutional net: wrong at once under large perturbations, right under small ones."""

    def __init__(self, classes: int = 10, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                nn.Conv2d(3, 12, 3, 2, 1), nn.GELU(), nn.Conv2d(12, 16, 3, 2, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(2)
            )
            self.head = nn.Linear(64, classes)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.head(10 * self.features(x).flatten(1))
        return logits


class Wrapped(nn.Module):
    """`change(logits, x, call number)` of another model."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        super().__init__()
        self.model, self.change, self.calls = model, change, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.change(self.model(x), x, self.calls)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [0,1), without touching the global generator."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small_conv(classes: int = 10, seed: int = 0) -> nn.Module:
    return SmallConv(classes, seed).eval()


def hadamard_model(classes: int, pixels: int = 64) -> Linear:
    """Rows of +-100, orthogonal: every pair of classes is equally far apart in any norm.

    The scale (that of CLIP) makes cross-entropy see little but the two largest logits.
    """
    return Linear(100.0 * torch.from_numpy(hadamard(pixels)[1 : classes + 1]).float()).eval()


def random_linear(classes: int, seed: int = 0) -> Linear:
    """Gaussian rows and biases."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 64, generator=generator)
    return Linear(weight, 0.1 * torch.randn(classes, generator=generator)).eval()


@torch.no_grad()
def labelled(model: nn.Module, images: Tensor, first: int = 0) -> list[Example]:
    """Examples that the model gets right."""
    labels = model(images).argmax(dim=1).tolist()
    return [Example(first + i, image, label) for i, (image, label) in enumerate(zip(images, labels, strict=True))]


def engine(
    model: nn.Module,
    attack: str,
    eps: float | Sequence[float],
    norm: Norm = "linf",
    quantize: bool = False,
    **given: Any,
) -> Engine:
    """An engine with these options."""
    eps_values = [eps] if isinstance(eps, (int, float)) else eps
    recipe = SHORT_SUITE if attack == SHORT_SUITE.name else parse_recipe(attack)
    return Engine(model, recipe, ThreatModel(norm, quantize), eps_values, EngineOptions(**given))


def run(
    model: nn.Module,
    examples: Sequence[Example],
    attack: str,
    eps: float | Sequence[float],
    norm: Norm = "linf",
    **given: Any,
) -> list[ImageOutcome]:
    """Outcomes in the order of the images' indices."""
    return sorted(engine(model, attack, eps, norm, **given).run(examples), key=lambda o: o.index)


def robust(outcomes: Sequence[ImageOutcome], eps_index: int = 0) -> list[bool]:
    return [o.eps_outcomes[eps_index].robust for o in outcomes]


def facts(at_eps: EpsOutcome) -> tuple[float, bool, int, str | None]:
    """What must not depend on the batch at all."""
    return at_eps.eps, at_eps.robust, at_eps.prediction, at_eps.broken_by


class Precise(nn.Module):
    """A model evaluated in double precision: kernels that differ between batch shapes then agree in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.double())
        return logits.float()
