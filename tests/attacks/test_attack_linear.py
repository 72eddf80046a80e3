"""On linear models the smallest perturbation is known: no attack may need much more, and none may do with less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_models import Linear, hadamard_model, labelled, random_linear, robust, run, uniform
from scipy.optimize import linprog, minimize
from torch import Tensor

from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.threat import NORMS
from clipguard.core.eps import Norm


def closed_form(model: Linear, examples: list[Example], norm: Norm) -> Tensor:
    """(N,) distance to the nearest of the hyperplanes between the label and another class, ignoring [0,1]."""
    distances = []
    for example in examples:
        logits = model(example.image[None])[0].detach()
        others = [k for k in range(len(logits)) if k != example.label]
        normals = model.weight.detach()[others] - model.weight.detach()[example.label]
        dual = normals.abs().sum(dim=1) if norm == "linf" else normals.norm(dim=1)
        distances.append(((logits[example.label] - logits[others]) / dual).min())
    return torch.stack(distances)


def in_the_box(model: Linear, example: Example, norm: Norm) -> float:
    """As `closed_form` for one image, with [0,1]: a linear program, or a quadratic one."""
    x = example.image.flatten().double().numpy()
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    best = np.inf
    for k in set(range(len(bias))) - {example.label}:
        normal, offset = weight[k] - weight[example.label], bias[k] - bias[example.label]
        gap = -(normal @ x + offset)  # <normal, d> must reach it
        if norm == "linf":
            d = len(x)
            cost = np.r_[np.zeros(d), 1]
            above = np.c_[np.eye(d), -np.ones(d)]
            below = np.c_[-np.eye(d), -np.ones(d)]
            rows = np.r_[above, below, np.r_[-normal, 0][None]]
            limits = np.r_[np.zeros(2 * d), -gap]
            solved = linprog(cost, rows, limits, bounds=[*zip(-x, 1 - x, strict=True), (0, None)])
            value = solved.fun if solved.success else np.inf
        else:
            constraint = {"type": "ineq", "fun": lambda d, n=normal, g=gap: n @ d - g, "jac": lambda _, n=normal: n}
            start = np.clip(x + normal * gap / (normal @ normal), 0, 1) - x
            solved = minimize(
                lambda d: d @ d,
                start,
                jac=lambda d: 2 * d,
                bounds=list(zip(-x, 1 - x, strict=True)),
                constraints=[constraint],
                method="SLSQP",
                options={"maxiter": 300, "ftol": 1e-12},
            )
            value = float(np.sqrt(solved.fun)) if solved.success else np.inf
        best = min(best, value)
    return best


def at_distance(model: Linear, n: int, eps: float, norm: Norm, seed: int = 0, side: int = 8) -> list[Example]:
    """Images at this distance from the nearest boundary, so far from 0 and 1 that the box never binds."""
    examples = labelled(model, 0.5 + 0.3 * (uniform(40, 1, side, side, seed=seed) - 0.5))
    distances = closed_form(model, examples, norm)
    chosen = [i for i in range(40) if distances[i] > eps][:n]
    assert len(chosen) == n
    moved = []
    for i in chosen:
        example, logits = examples[i], model(examples[i].image[None])[0].detach()
        normals = model.weight.detach() - model.weight.detach()[example.label]
        dual = normals.abs().sum(dim=1) if norm == "linf" else normals.norm(dim=1)
        away = (logits[example.label] - logits) / dual
        away[example.label] = torch.inf
        normal = normals[away.argmin()].view_as(example.image)
        direction = normal.sign() if norm == "linf" else normal / normal.norm()
        moved.append(Example(i, example.image + (distances[i] - eps) * direction, example.label))
    assert torch.allclose(closed_form(model, moved, norm), torch.tensor(eps), rtol=1e-3)
    return moved


def assert_tight(
    model: Linear, examples: list[Example], optimum: float, attack: str, norm: Norm, factor: float = 1.05
) -> None:
    assert robust(run(model, examples, attack, 0.99 * optimum, norm)) == [True] * len(examples)
    assert robust(run(model, examples, attack, factor * optimum, norm)) == [False] * len(examples)


EPS: dict[Norm, float] = {"linf": 0.002, "l2": 0.015}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("attack", "classes"),
    [
        *(("pgd-20", c) for c in (2, 3, 4, 12)),
        *(("cw-20", c) for c in (2, 12)),
        *(("apgd-ce", c) for c in (2, 3, 12)),
        *(("apgd-dlr", c) for c in (2, 12)),
        *(("apgd-t(targets=2)", c) for c in (2, 3, 12)),
        *(("fab-t(targets=2)", c) for c in (2, 4, 12)),
    ],
)
def test_attacks_find_the_smallest_perturbation(attack: str, classes: int, norm: Norm) -> None:
    model = hadamard_model(classes)
    assert_tight(model, at_distance(model, 6, EPS[norm], norm), EPS[norm], attack, norm, factor=1.1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ["apgd-t", "fab-t"])
def test_targeted_attacks_find_the_nearest_class_whatever_its_logit(attack: str, norm: Norm) -> None:
    model = random_linear(6)
    eps = {"linf": 0.005, "l2": 0.05}[norm]
    assert_tight(model, at_distance(model, 6, eps, norm), eps, attack, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_the_full_suite(norm: Norm) -> None:
    model = hadamard_model(3, pixels=16)
    examples = at_distance(model, 4, 0.01, norm, side=4)
    assert robust(run(model, examples, "autoattack", 0.0105, norm)) == [False] * 4
    if norm == "linf":  # 5000 queries for an image that nothing can break: once is enough
        assert robust(run(model, examples[:1], "autoattack", 0.0099, norm)) == [True]


@pytest.mark.parametrize("norm", NORMS)
def test_one_gradient_step_is_exact_between_two_classes(norm: Norm) -> None:
    model = random_linear(2)
    eps = {"linf": 0.005, "l2": 0.05}[norm]
    assert_tight(model, at_distance(model, 8, eps, norm), eps, "fgsm", norm, factor=1.01)


@pytest.mark.parametrize(("norm", "factor"), [("linf", 1.05), ("l2", 1.5)])
def test_square_finds_it_without_gradients(norm: Norm, factor: float) -> None:
    model = hadamard_model(3, pixels=16)
    assert_tight(model, at_distance(model, 6, 0.01, norm, side=4), 0.01, "square(queries=1000)", norm, factor)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("attack", ["apgd-t", "fab-t"])
def test_with_pixels_at_the_borders(attack: str, classes: int, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(3)
    model = Linear(torch.randn(classes, 16, generator=generator)).eval()
    corners = (uniform(2, 1, 4, 4, seed=4) < 0.5).float()
    images = (corners + 0.1 * (uniform(2, 1, 4, 4, seed=5) - 0.5)).clamp(0, 1)
    examples = labelled(model, images)
    optima = torch.tensor([in_the_box(model, e, norm) for e in examples])
    assert (optima > 1.02 * closed_form(model, examples, norm)).all()  # the box does bind
    for example, optimum in zip(examples, optima.tolist(), strict=True):
        assert_tight(model, [example], optimum, attack, norm, factor=1.08)


def test_the_distance_found_is_that_of_the_image() -> None:
    model = random_linear(4)
    examples = labelled(model, 0.5 + 0.2 * (uniform(4, 1, 8, 8) - 0.5))
    for norm in NORMS:
        for outcome in run(model, examples, "apgd-t", 0.3, norm, keep_images=True):
            at_eps, clean = outcome.eps_outcomes[0], examples[outcome.index].image
            assert at_eps.image is not None
            delta = (at_eps.image - clean).flatten()
            expected = delta.abs().max() if norm == "linf" else delta.norm()
            assert at_eps.distance == pytest.approx(float(expected), rel=1e-5)
            logits = model(at_eps.image[None])[0].detach()
            others = torch.cat([logits[: outcome.label], logits[outcome.label + 1 :]])
            assert at_eps.margin == pytest.approx(float(logits[outcome.label] - others.max()), abs=1e-4)
            assert at_eps.prediction == int(logits.argmax()) != outcome.label
