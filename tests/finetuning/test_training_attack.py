"""The training attack, on objectives whose maximum is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipguard.attacks.threat import ThreatModel
from clipguard.finetuning.training.training_attack import Noise, TrainingAttack

X = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
DIRECTION = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
EPS = 0.1
KEYS = [11, 12, 13, 14, 15]


def linear(x: Tensor) -> Tensor:
    return (x * DIRECTION).flatten(1).sum(dim=1)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_finds_the_maximum_of_a_linear_objective(norm: str, random_start: bool) -> None:
    attack = TrainingAttack(ThreatModel(norm), EPS, 40, EPS / 4, random_start)  # type: ignore[arg-type]
    x_adv, value = attack(linear, X, KEYS)
    best = EPS * DIRECTION.sign() if norm == "linf" else EPS * DIRECTION / DIRECTION.norm()
    assert torch.allclose(x_adv, X + best, atol=2e-3)
    assert value == pytest.approx(float(linear(X + best).mean()), rel=1e-2)
    assert not x_adv.requires_grad


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_random_start_is_inside_the_ball_and_follows_the_key_alone(norm: str) -> None:
    threat = ThreatModel(norm)  # type: ignore[arg-type]
    attack = TrainingAttack(threat, EPS, 1, 0.0, True)
    x_adv, _ = attack(linear, X, KEYS)
    assert threat.contains(x_adv, X, torch.full((5,), EPS)).all()
    assert (x_adv != X).flatten(1).any(dim=1).all()
    assert torch.equal(attack(linear, X[2:4], KEYS[2:4])[0], x_adv[2:4])  # whatever else is in the batch
    assert not torch.equal(attack(linear, X, [k + 9 for k in KEYS])[0], x_adv)


def test_noise_is_uniform_and_normal() -> None:
    noise = Noise(list(range(50)), torch.device("cpu"))
    uniform, normal = noise.uniform(100), noise.normal(100)
    assert 0 <= uniform.min() <= uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.02)
    assert normal.mean() == pytest.approx(0, abs=0.05)
    assert normal.std() == pytest.approx(1, abs=0.05)


def test_pixels_stay_in_range() -> None:
    attack = TrainingAttack(ThreatModel("linf"), 0.9, 2, 0.9, True)
    x_adv, _ = attack(linear, X, KEYS)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
