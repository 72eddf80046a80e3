from __future__ import annotations

import math

import pytest
import torch
from defended_models import LinearClip, claimed_slope, images
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.csr import CSR, Filter

EVERY, NONE = 1.1, -1.0  # thresholds by which every image is moved, and none


def wave(height: int, width: int, down: int, across: int) -> Tensor:
    """(1, 3, H, W) around 0.5, of one frequency in cycles an image."""
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
    return (0.5 + 0.1 * torch.cos(2 * math.pi * (down * rows + across * columns))).expand(1, 3, height, width)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("gaussian", math.exp(-25 / (2 * 16))), ("butterworth", 1 / (1 + (5 / 4) ** 4)), ("ideal", 0.0)],
)
def test_a_filter_damps_a_wave_by_its_factor(kind: Filter, factor: float) -> None:
    """At 224 a wave of (3, 4) cycles has distance 5, whatever its phase, and its mean has distance 0."""
    x = wave(224, 224, 3, 4)
    torch.testing.assert_close(CSR(low_pass=kind, radius=4).smoothed(x), 0.5 + factor * (x - 0.5), rtol=0, atol=1e-6)


def test_the_ideal_filter_keeps_what_lies_on_its_circle() -> None:
    x = wave(224, 224, 3, 4)
    torch.testing.assert_close(CSR(low_pass="ideal", radius=5).smoothed(x), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(112, 112), (56, 112), (55, 112)])
def test_a_filter_cuts_at_the_same_cycles_per_pixel_at_any_size(height: int, width: int) -> None:
    """A wave across 112 pixels that has 4 cycles has 8 across 224."""
    x = wave(height, width, 0, 4)
    wanted = 0.5 + math.exp(-64 / (2 * 16)) * (x - 0.5)
    torch.testing.assert_close(CSR(radius=4).smoothed(x), wanted, rtol=0, atol=1e-6)


def test_the_gate_is_the_cosine_with_the_low_passed_image() -> None:
    model, x, defense = LinearClip(), images(8), CSR(radius=50)
    cosines = (model.embed(x) * model.embed(defense.smoothed(x))).sum(dim=1)
    middle = cosines.sort().values[3:5].mean().item()
    defense = CSR(radius=50, threshold=middle)
    flagged = defense.flagged(Undefended(model), x, View())
    assert flagged.tolist() == (cosines < middle).tolist()
    assert flagged.sum() == 4
    moved = (defense.purify(Undefended(model), x, View()) != x).flatten(1).any(dim=1)
    assert torch.equal(moved, flagged)


def test_an_image_that_passes_is_classified_as_it_is() -> None:
    model, x = LinearClip(), images()
    assert torch.equal(CSR(threshold=NONE).logits(Undefended(model), x, View()), model(x))


def by_hand(model: LinearClip, x: Tensor, low: Tensor, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Iterates and scores. The gradient of cos(W x, t), t of unit length, is W^T (t - cos u) / ||W x||."""
    t, a = model.embed(low), model.embed(x)
    points, scores = [x], []
    for _ in range(steps):
        features = points[-1].flatten(1) @ model.weight.T
        u = F.normalize(features, dim=1)
        score = (u * t).sum(dim=1) - (u * a).sum(dim=1)
        pull = (t - a - score[:, None] * u) / features.norm(dim=1, keepdim=True) @ model.weight
        step = points[-1] + 2 / 255 * pull.view_as(x).sign()
        points.append((x + (step - x).clamp(-4 / 255, 4 / 255)).clamp(0, 1))
        scores.append(score)
    u = model.embed(points[-1])
    return points, [*scores, (u * t).sum(dim=1) - (u * a).sum(dim=1)]


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_flagged_image_becomes_the_best_iterate_by_hand(steps: int) -> None:
    model, x, defense = LinearClip(), images(6), CSR(threshold=EVERY, steps=steps, radius=60)
    points, scores = by_hand(model, x, defense.smoothed(x), steps)
    best = torch.stack(scores).argmax(dim=0).tolist()
    wanted = torch.stack([points[index][row] for row, index in enumerate(best)])
    torch.testing.assert_close(defense.purify(Undefended(model), x, View()), wanted)


def test_the_gradient_of_a_flagged_image_is_not_zero_and_differs_by_how_it_is_taken() -> None:
    x, values, gradients = images(), [], []
    defended = defend(LinearClip(curved=True), [CSR(threshold=EVERY)])
    for backward in ("identity", "surrogate"):
        leaf = x.clone().requires_grad_()
        logits = defended.logits(leaf, View(backward=backward))
        values.append(logits.detach())
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), leaf)[0])
    assert torch.equal(values[0], values[1])
    assert all(gradient.flatten(1).norm(dim=1).min() > 0 for gradient in gradients)
    assert not torch.allclose(gradients[0], gradients[1])


def test_both_branches_are_the_image_and_the_low_passed_one() -> None:
    model, x, defense = LinearClip(), images(1), CSR(radius=50)
    relaxed = defense.relaxed("both branches", Undefended(model), x, View())
    torch.testing.assert_close(relaxed, (model(x) + model(defense.smoothed(x))) / 2)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(defense.relaxed("both branches", Undefended(model), leaf, View())[0, 1], leaf)[0]
    ends = [defense.relaxed("both branches", Undefended(model), x + h * direction, View())[0, 1] for h in (0.01, -0.01)]
    torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 0.02, rtol=1e-2, atol=1e-3)


def test_where_all_pass_every_gradient_is_that_of_the_model() -> None:
    model, x = LinearClip(curved=True), images(1)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    defense = CSR(threshold=NONE)
    wanted = claimed_slope(CSR(threshold=NONE), Undefended(model), x, direction, View())
    for backward in ("identity", "surrogate"):
        slope = claimed_slope(defense, Undefended(model), x, direction, View(backward=backward))
        torch.testing.assert_close(slope, wanted)


def test_passes_are_at_most_those_that_it_declares() -> None:
    classifier = Undefended(LinearClip())
    CSR(threshold=EVERY).logits(classifier, images(3), View())
    assert (classifier.count.forward, classifier.count.backward) == (3 * 7, 3 * 3)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = images(5), defend(LinearClip(), [CSR(threshold=EVERY)])
    together = defended.logits(x, View())
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], together[3], rtol=1e-5, atol=1e-6)


def test_what_it_cannot_stand_around_or_do() -> None:
    with pytest.raises(DefenseError, match="needs a CLIP model's embeddings"):
        defend(torch.nn.Flatten(), [CSR()])
    with pytest.raises(DefenseError, match="radius must be above 0, not 0"):
        CSR(radius=0)
