"""PGD's start and steps."""

from __future__ import annotations

import pytest
import torch
from attack_models import uniform

from clipguard.attacks.methods.pgd import CW, FGSM, PGD, uniform_in_ball
from clipguard.attacks.random import Draws
from clipguard.attacks.state import Rows
from clipguard.attacks.threat import Norm, ThreatModel

NORMS: tuple[Norm, ...] = ("linf", "l2")


def table(n: int, eps: float) -> Rows:
    return Rows(x0=0.5 + 0.02 * uniform(n, 1, 2, 2), eps=torch.full((n,), eps), step=torch.zeros(n).long())


def draws(n: int) -> Draws:
    return Draws(0, "pgd", range(n), [0] * n, torch.device("cpu"))


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_is_uniform_in_the_ball(norm: Norm) -> None:
    rows, threat = table(4000, 0.3), ThreatModel(norm)
    start = uniform_in_ball(rows, threat, draws(4000))
    distance = threat.distance(start, rows["x0"])
    assert distance.max() <= 0.3 + 1e-6
    for share in (0.25, 0.5, 0.9):  # P(distance <= s eps) = s^4 in four dimensions, for either norm
        assert (distance <= 0.3 * share ** (1 / 4)).float().mean().item() == pytest.approx(share, abs=0.03)
    assert (start - rows["x0"]).mean(dim=0).abs().max() < 0.02


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
    rows, threat, nothing = table(3, 0.1), ThreatModel(norm), torch.zeros(3)
    attack.start(rows, threat, draws(3))
    assert torch.equal(rows["x"], rows["x0"])
    gradient = uniform(3, 1, 2, 2, seed=3) - 0.5
    attack.update(rows, threat, rows["x"], nothing, nothing, gradient)
    expected = rows["x0"] + 0.1 * fraction * threat.steepest(gradient)
    assert torch.allclose(rows["x"], expected, atol=1e-6)
