"""How strong adaptive attacks are: cases where they must break what transferred images cannot, and where nothing may.

The classifier goes by the brightness of an image, by little, and by a pattern of single pixels, by much.
What follows its gradient draws that pattern and leaves the brightness alone. Defences that average the pattern away
stand against such images, and fall to whoever makes the image darker.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.defenses import THREATS
from clipguard.defenses.attacking.engine import DefendedEngine
from clipguard.defenses.attacking.threats import DefendedModel, split_by_threat
from clipguard.defenses.classifiers import defend
from clipguard.defenses.registry import BUILT_IN, parse_defenses

SIDE = 16


class Chequered(nn.Module):
    """Class 1 where brightness - 1/2 + 3 * (share of the chequered pattern) is above zero."""

    least_rows = 1

    def __init__(self) -> None:
        super().__init__()
        place = torch.arange(SIDE)
        self.register_buffer("board", ((place[:, None] + place) % 2 * 2 - 1).float())
        self.register_buffer("text", torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))

    def pattern(self, share: Tensor) -> Tensor:
        return 3 * share

    def embed(self, x: Tensor, *, normalize: bool = True) -> Tensor:
        change = x - 0.5
        total = change.mean(dim=(1, 2, 3)) + self.pattern((change * self.board).mean(dim=(1, 2, 3)))
        features = torch.stack([8 * total, torch.full((len(x),), 0.5)], dim=1)
        return F.normalize(features, dim=1) if normalize else features

    def score(self, features: Tensor) -> Tensor:
        return 10 * features @ self.text

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.embed(x))


class Rippled(Chequered):
    """The pattern counts in ripples so narrow that noise averages them away."""

    def pattern(self, share: Tensor) -> Tensor:
        return 0.05 * torch.sin(300 * share)


def standing(model: nn.Module, defense: str, threat: str, brightness: float, eps: float, recipe: str) -> list[bool]:
    model = model.eval()
    defended = DefendedModel(model, defend(model, parse_defenses(defense)), seed=0, votes=5, draws=4)
    (of_threat,) = split_by_threat(parse_recipe(recipe), [threat])
    engine = DefendedEngine(defended, of_threat, ThreatModel(), [eps], EngineOptions())
    images = (Example(index, torch.full((3, SIDE, SIDE), brightness), 1) for index in range(3))
    return [outcome.eps_outcomes[0].robust for outcome in engine.run(images)]


@pytest.mark.parametrize(
    ("defense", "model", "brightness", "eps"),
    [
        ("jpeg(quality=10)", Chequered, 0.53, 0.05),
        ("random-resize", Chequered, 0.53, 0.05),
        ("tte(crops=1)", Chequered, 0.6, 0.1),
        ("csr(eps=16,step_size=8)", Chequered, 0.53, 0.05),
        ("smoothing(samples=25)", Rippled, 0.53, 0.05),
    ],
)
def test_an_adaptive_attack_breaks_what_transferred_images_cannot(
    defense: str, model: type[Chequered], brightness: float, eps: float
) -> None:
    recipe = "apgd-ce(iterations=40)"
    assert standing(model(), defense, "transfer", brightness, eps, recipe) == [True] * 3
    assert standing(model(), defense, "adaptive", brightness, eps, recipe) == [False] * 3


WITHOUT_TEXT = [kind.name for kind in BUILT_IN if kind.name not in ("clipure-cos", "r-tpt")]  # these need a text tower


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("defense", WITHOUT_TEXT)
def test_nothing_breaks_an_image_whose_margin_no_attack_can_cross(defense: str, threat: str) -> None:
    """0.4 above the threshold: a ball of 0.02 takes 0.08 of that, and the defences change little of it."""
    options = "(samples=25)" if defense == "smoothing" else ""
    recipe = "apgd-ce(iterations=5)+square(queries=10)"
    assert standing(Chequered(), defense + options, threat, 0.9, 0.02, recipe) == [True] * 3
