"""PGD's start and steps."""

from __future__ import annotations

import pytest
import torch
from attack_models import uniform

from clipguard.attacks.methods.pgd import CW, FGSM, PGD
from clipguard.attacks.projected_gradient import uniform_in_ball
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import NORMS, ThreatModel
from clipguard.core.eps import Norm


def table(n: int, eps: float) -> AttackState:
    return AttackState(x0=0.5 + 0.02 * uniform(n, 1, 2, 2), eps=torch.full((n,), eps), step=torch.zeros(n).long())


def per_image_random(n: int) -> PerImageRandom:
    return PerImageRandom(0, "pgd", range(n), [0] * n, torch.device("cpu"))


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_is_uniform_in_the_ball(norm: Norm) -> None:
    state, threat = table(4000, 0.3), ThreatModel(norm)
    start = uniform_in_ball(state["x0"], state["eps"], threat, per_image_random(4000))
    distance = threat.distance(start, state["x0"])
    assert distance.max() <= 0.3 + 1e-6
    for share in (0.25, 0.5, 0.9):  # P(distance <= s eps) = s^4 in four dimensions, for either norm
        assert (distance <= 0.3 * share ** (1 / 4)).float().mean().item() == pytest.approx(share, abs=0.03)
    assert (start - state["x0"]).mean(dim=0).abs().max() < 0.02


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("attack", "fraction"),
    [
        (PGD(10, random_start=False), 0.25),
        (PGD(2, random_start=False), 1.0),
        (CW(50, random_start=False), 0.05),
        (PGD(10, step_size=0.1, random_start=False), 0.1),
        (FGSM(), 1.0),
    ],
)
def test_a_step_is_this_share_of_eps(attack: PGD, fraction: float, norm: Norm) -> None:
    state, threat, nothing = table(3, 0.1), ThreatModel(norm), torch.zeros(3)
    attack.start(state, threat, per_image_random(3))
    assert torch.equal(state["x"], state["x0"])
    gradient = uniform(3, 1, 2, 2, seed=3) - 0.5
    attack.update(state, threat, state["x"], nothing, nothing, gradient)
    expected = state["x0"] + 0.1 * fraction * threat.steepest(gradient)
    assert torch.allclose(state["x"], expected, atol=1e-6)
