"""Projections: onto the ball, onto 8-bit images, and FAB's onto a hyperplane inside the box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_models import uniform
from pyautoattack.fab_projections import projection_l2, projection_linf
from scipy.optimize import linprog, minimize
from torch import Tensor

from clipguard.attacks.methods.fab import project_on_hyperplane
from clipguard.attacks.threat import NORMS, ThreatModel
from clipguard.core.eps import Norm


def cases(n: int, dimension: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points, normals, and offsets of either sign, some of them out of reach."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, dimension, generator=generator)
    w = torch.randn(n, dimension, generator=generator)
    reach = (w.abs() * torch.rand(n, dimension, generator=generator)).sum(dim=1)
    return x, w, reach * (2.4 * torch.rand(n, generator=generator) - 1.2)


def room(x: Tensor, w: Tensor, offset: Tensor) -> Tensor:
    """Signed moves to the corner of the box at which <w, x> has changed most in the wanted direction."""
    rising = w.sign() * -offset.sign()[:, None]
    return torch.where(rising > 0, 1 - x, -x) * (rising != 0)


def exact(x: np.ndarray, w: np.ndarray, offset: float, norm: Norm) -> float:
    """The smallest norm of d with <w, d> = -offset and x + d in the box, by a general solver."""
    bounds = list(zip(-x, 1 - x, strict=True))
    if norm == "linf":
        n = len(x)
        rows = np.r_[np.c_[np.eye(n), -np.ones(n)], np.c_[-np.eye(n), -np.ones(n)]]
        cost, equal = np.r_[np.zeros(n), 1.0], np.r_[w, 0.0][None]
        return float(linprog(cost, rows, np.zeros(2 * n), equal, [-offset], bounds=[*bounds, (0, None)]).fun)
    constraint = {"type": "eq", "fun": lambda d: w @ d + offset, "jac": lambda _: w}
    start = np.clip(-offset * w / (w @ w), -x, 1 - x)
    options = {"maxiter": 500, "ftol": 1e-14}
    solved = minimize(
        lambda d: d @ d,
        start,
        jac=lambda d: 2 * d,
        bounds=bounds,
        constraints=[constraint],
        method="SLSQP",
        options=options,
    )
    return float(np.sqrt(solved.fun))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", [1, 2, 12])
def test_the_projection_is_the_smallest_move_onto_the_plane(dimension: int, norm: Norm) -> None:
    x, w, offset = cases(30, dimension, seed=dimension)
    d = project_on_hyperplane(x, w, offset, norm)
    assert ((x + d >= -1e-6) & (x + d <= 1 + 1e-6)).all()
    corner = room(x, w, offset)
    within_reach = (w * corner).sum(dim=1).abs() > offset.abs() * 1.001
    assert 5 < within_reach.sum() < 30
    fall = -(w * d).sum(dim=1)
    assert torch.allclose(fall[within_reach], offset[within_reach], rtol=1e-4, atol=1e-5)
    for i in range(30):
        if within_reach[i]:
            best = exact(x[i].double().numpy(), w[i].double().numpy(), float(offset[i]), norm)
            found = d[i].abs().max() if norm == "linf" else d[i].norm()
            assert float(found) == pytest.approx(best, rel=1e-3, abs=1e-5)
        else:
            assert torch.allclose(d[i], corner[i], atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_the_projection_equals_the_reference_s(spread: float, norm: Norm) -> None:
    """Also for weights over several orders of magnitude (log-normal with this spread)."""
    x, w, offset = cases(40, 300, seed=7)
    w = w * torch.exp(spread * torch.randn(w.shape, generator=torch.Generator().manual_seed(8)))
    reference = projection_linf if norm == "linf" else projection_l2
    theirs = reference(x.clone(), w.clone(), (w * x).sum(dim=1) - offset)
    ours = project_on_hyperplane(x, w, offset, norm)
    assert torch.allclose(ours, theirs, atol=2e-3 if norm == "linf" else 2e-4)
    reach = (w * room(x, w, offset)).sum(dim=1).abs() > offset.abs() * 1.01
    ours_misses, theirs_misses = (((w * d).sum(dim=1) + offset)[reach].abs() for d in (ours, theirs))
    assert ours_misses.max() <= 1e-4 * offset.abs().max() + theirs_misses.max()


@pytest.mark.parametrize("norm", NORMS)
def test_degenerate_planes(norm: Norm) -> None:
    x = torch.tensor([[0.2, 0.7, 0.0, 1.0]]).expand(5, 4).contiguous()
    w = torch.tensor([[0.0] * 4, [1.0, -1, 2, 3], [1.0, 1, 1, 1], [0.0, 0, 0, 2], [0.0, 0, 1, 0]])
    offset = torch.tensor([1.0, 0.0, 100.0, 0.5, 0.5])
    d = project_on_hyperplane(x, w, offset, norm)
    assert torch.isfinite(d).all()
    expected = torch.tensor([[0.0] * 4, [0.0] * 4, [-0.2, -0.7, 0, -1], [0, 0, 0, -0.25], [0.0] * 4])
    assert torch.allclose(d, expected, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20])
def test_the_scale_of_the_plane_does_not_matter(scale: float, norm: Norm) -> None:
    x, w, offset = cases(20, 30, seed=1)
    plain = project_on_hyperplane(x, w, offset, norm)
    assert torch.allclose(project_on_hyperplane(x, scale * w, scale * offset, norm), plain, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_is_projected_as_it_would_be_alone(norm: Norm) -> None:
    x, w, offset = cases(20, 20_000, seed=2)
    w = w * torch.exp(2 * torch.randn(w.shape, generator=torch.Generator().manual_seed(3)))  # rows differ in steps
    offset = offset.sign() * (w.abs() * x).sum(dim=1) * torch.linspace(0, 0.8, 20)
    together = project_on_hyperplane(x, w, offset, norm)
    alone = torch.cat([project_on_hyperplane(x[i : i + 1], w[i : i + 1], offset[i : i + 1], norm) for i in range(20)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("norm", NORMS)
def test_the_ball(norm: Norm) -> None:
    threat, eps = ThreatModel(norm), torch.tensor([0.1, 0.3, 2.0, 0.0])
    x0, x = uniform(4, 3, 5, 4), 3 * uniform(4, 3, 5, 4, seed=1) - 1
    inside = threat.project(x, x0, eps)
    assert threat.contains(inside, x0, eps).all()
    assert torch.equal(inside[3], x0[3])
    assert torch.allclose(threat.project(inside, x0, eps), inside, atol=1e-6)
    assert not threat.contains(x, x0, eps).any()
    assert not threat.contains(torch.full_like(x0, torch.nan), x0, eps).any()
    beyond = x0 + (inside - x0) * 1.01
    assert not threat.contains(beyond.clamp(0, 1), x0, threat.distance(inside, x0) * 0.999)[:3].any()
    if norm == "linf":
        assert torch.allclose(
            inside,
            torch.minimum(torch.maximum(x, x0 - eps[:, None, None, None]), x0 + eps[:, None, None, None]).clamp(0, 1),
        )


def test_the_steepest_direction_survives_tiny_gradients() -> None:
    gradient = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = ThreatModel("l2").steepest(gradient)
    assert torch.allclose(plain.flatten(1).norm(dim=1), torch.ones(3))
    assert torch.allclose(ThreatModel("l2").steepest(1e-25 * gradient), plain, atol=1e-5)
    for norm in NORMS:
        assert torch.equal(ThreatModel(norm).steepest(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("levels", [0.4, 1, 2.5, 8])
def test_admissible_images_are_8_bit_and_inside(levels: float, norm: Norm) -> None:
    threat = ThreatModel(norm, quantize=True)
    x0 = torch.randint(0, 256, (6, 3, 10, 10), generator=torch.Generator().manual_seed(0)) / 255
    eps = torch.full((6,), levels / 255 * (1 if norm == "linf" else 300**0.5))
    step = eps[:, None, None, None] * (2 * uniform(6, 3, 10, 10) - 1) * (1 if norm == "linf" else 0.1)
    x = threat.project(x0 + step, x0, eps)
    rounded = threat.admissible(x, x0, eps)
    assert torch.equal(rounded, (rounded * 255).round() / 255)
    assert threat.contains(rounded, x0, eps).all()
    assert torch.equal(threat.admissible(rounded, x0, eps), rounded)
    assert torch.equal(threat.admissible(x0, x0, eps), x0)
    assert ((rounded - x).abs() <= 1 / 255 + 1e-6).all()
    if levels >= 1:
        assert not torch.equal(rounded, x0)
    if norm == "l2":  # hardly shorter than before rounding, though every value moved by less than half a level
        before, after = threat.distance(x, x0), threat.distance(rounded, x0)
        assert (after <= before + 1e-6).all()
        assert (after >= before - 2 / 255).all()


def test_values_go_to_the_nearest_level_that_is_inside() -> None:
    threat, x0 = ThreatModel("linf", quantize=True), torch.full((2, 1, 1, 4), 100 / 255)
    x = x0 + torch.tensor([0.4, 0.6, -1.4, -1.6]) / 255
    rounded = threat.admissible(x, x0, torch.tensor([2.0, 1.6]) / 255)
    assert (rounded * 255).round().flatten(1).tolist() == [[100, 101, 99, 98], [100, 101, 99, 99]]


def test_images_that_are_not_8_bit_still_give_8_bit_ones_if_any_is_near() -> None:
    threat, x0 = ThreatModel("linf", quantize=True), uniform(4, 3, 6, 6)
    eps = torch.tensor([2 / 255, 1 / 255, 0.6 / 255, 0.1 / 255])
    x = threat.project(x0 + 0.5, x0, eps)
    rounded = threat.admissible(x, x0, eps)
    assert threat.contains(rounded, x0, eps).all()
    assert torch.equal(rounded[:3], (rounded[:3] * 255).round() / 255)
    assert torch.equal(rounded[3], x0[3])
