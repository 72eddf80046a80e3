"""Every registered attack, in every norm, on models and images of every kind: what must always hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_models import Linear, Precise, facts, labelled, run, uniform
from torch import Tensor, nn

from clipguard.api.attack import attack
from clipguard.attacks.engine.outcome import EpsOutcome, Example
from clipguard.attacks.registry import ATTACKS
from clipguard.attacks.threat import NORMS
from clipguard.core.eps import Norm

# A short one of each. A newly registered attack needs a line here.
SHORT = {
    "fgsm": "fgsm",
    "pgd": "pgd-3",
    "cw": "cw-3",
    "apgd-ce": "apgd-ce(iterations=4)",
    "apgd-dlr": "apgd-dlr(iterations=4)",
    "apgd-t": "apgd-t(iterations=3,targets=2)",
    "fab-t": "fab-t(iterations=3,targets=2)",
    "square": "square(queries=8)",
}
SHAPES = [(1, 5, 5), (3, 8, 8), (3, 6, 9)]
# Nothing, little, and so much that every attack breaks some image of a model that can be broken.
EPS_VALUES: dict[Norm, list[float]] = {"linf": [0.0, 0.01, 0.4], "l2": [0.0, 0.05, 3.0]}
CLASSES = 5


def linear(shape: tuple[int, ...]) -> nn.Module:
    weight = torch.randn(CLASSES, torch.Size(shape).numel(), generator=torch.Generator().manual_seed(0))
    return Precise(Linear(weight)).eval()


def conv(shape: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pooled = nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return Precise(nn.Sequential(nn.Conv2d(shape[0], 8, 3, 2, 1), pooled, nn.Linear(32, CLASSES))).eval()


class Constant(nn.Module):
    """All logits are equal, whatever the image: no gradient, no ranking, and nothing that could break it."""

    def forward(self, x: Tensor) -> Tensor:
        return (0 * x.flatten(1).sum(dim=1, keepdim=True)).expand(-1, CLASSES)


MODELS: dict[str, Callable[[tuple[int, ...]], nn.Module]] = {
    "linear": linear,
    "conv": conv,
    "constant": lambda _shape: Constant().eval(),
}


def test_the_table_has_every_attack() -> None:
    without_plugins = {name for name, kind in ATTACKS.items() if kind.__module__.startswith("clipguard.")}
    assert SHORT.keys() == without_plugins


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", list(SHORT))
def test_what_holds_for_every_attack(name: str, norm: Norm, kind: str) -> None:
    broken = 0
    for shape in SHAPES:
        model = MODELS[kind](shape)
        examples = labelled(model, uniform(4, *shape, seed=1))
        crowd = run(model, examples, SHORT[name], EPS_VALUES[norm], norm, keep_images=True)
        for example, outcome in zip(examples, crowd, strict=True):
            for eps, at_eps in zip(EPS_VALUES[norm], outcome.eps_outcomes, strict=True):
                assert at_eps.eps == eps
                assert_admissible(example, at_eps, norm)
                assert_verified(model, example, at_eps)
            broken += not outcome.eps_outcomes[-1].robust
        (alone,) = run(model, examples[2:3], SHORT[name], EPS_VALUES[norm], norm, keep_images=True, batch_size=1)
        for mine, ours in zip(alone.eps_outcomes, crowd[2].eps_outcomes, strict=True):
            assert facts(mine) == facts(ours)
            assert torch.allclose(mine.image, ours.image, atol=1e-6)
    assert (broken > 0) == (kind != "constant")


def assert_admissible(example: Example, at_eps: EpsOutcome, norm: Norm) -> None:
    """The image is one, inside the ball; at eps 0 it is the clean one, bit for bit."""
    assert at_eps.image is not None
    assert at_eps.image.shape == example.image.shape
    assert 0 <= at_eps.image.min() <= at_eps.image.max() <= 1
    delta = (at_eps.image - example.image).double()
    assert (delta.abs().max() if norm == "linf" else delta.norm()) <= at_eps.eps * (1 + 1e-6) + 1e-6
    if at_eps.eps == 0:
        assert torch.equal(at_eps.image, example.image)
        assert at_eps.distance == 0


def assert_verified(model: nn.Module, example: Example, at_eps: EpsOutcome) -> None:
    """What is said of the image is what the model says of it."""
    prediction = int(model(at_eps.image[None]).argmax())
    assert at_eps.prediction == prediction
    assert at_eps.robust == (prediction == example.label)
    assert (at_eps.broken_by is None) == at_eps.robust


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", list(SHORT))
def test_images_of_every_floating_point_type(name: str, dtype: torch.dtype) -> None:
    """They are attacked as the float32 images that they stand for."""
    shape = SHAPES[0]
    model, images = linear(shape), uniform(2, *shape, seed=1).to(dtype)
    labels = model(images.float()).argmax(dim=1)
    result, same = (attack(model, x, labels, attack=SHORT[name], eps=0.4) for x in (images, images.float()))
    assert result.x_adv.dtype == torch.float32
    assert torch.equal(result.x_adv, same.x_adv)
    assert torch.equal(result.robust, same.robust)
