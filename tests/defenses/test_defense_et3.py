from __future__ import annotations

import math

import pytest
import torch
from defended_models import CLASSES, SIDE, LinearClip, claimed_slope, images, slope
from torch import Tensor

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.et3 import ET3
from clipguard.defenses.methods.ttc import TTC
from clipguard.models import load_model

SCALE = math.sqrt(SIDE * SIDE / 224**2)  # of l2 norms, from images of 224 pixels


class Linear(torch.nn.Module):
    """Logits W x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(CLASSES, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def test_the_steps_are_those_of_a_linear_classifier_by_hand() -> None:
    """f(x) = W x: the gradient of -logsumexp f is -W^T softmax(f)."""
    model, x = Linear(), images()
    delta = torch.zeros_like(x)
    for _ in range(2):
        g = -(model(x + delta).softmax(dim=1) @ model.weight).view_as(x)
        delta = (x + delta - 2.5 * SCALE * g / norms(g)).clamp(0, 1) - x
    assert (norms(delta) <= 5 * SCALE + 1e-6).all()
    torch.testing.assert_close(ET3().purify(Undefended(model), x, View()), x + delta)


def test_a_move_ends_at_the_ball_and_the_range_of_pixels() -> None:
    x = images()
    delta = ET3(steps=9, eps=3).purify(Undefended(Linear()), x, View()) - x
    torch.testing.assert_close(norms(delta), torch.full((3, 1, 1, 1), 3 * SCALE), rtol=1e-4, atol=0)
    far = ET3(steps=9, eps=1000, step_size=200).purify(Undefended(Linear()), x, View())
    assert (far.min(), far.max()) == (0, 1)


def test_it_lowers_the_energy() -> None:
    model, x = LinearClip(curved=True), images()
    moved = ET3(steps=4).purify(Undefended(model), x, View())
    assert (model(moved).logsumexp(dim=1) > model(x).logsumexp(dim=1)).all()


@pytest.mark.parametrize("defense", [ET3(step_size=50, eps=500), ET3(steps=3, step_size=60, eps=70)])
def test_the_unrolled_gradient_is_that_of_the_defended_logits(defense: ET3) -> None:
    """The second with the ball, which the third step leaves; the identity is far from it."""
    classifier, x = Undefended(LinearClip(curved=True)), images(1)
    direction = torch.nn.functional.normalize(torch.randn(1, 108, generator=torch.Generator().manual_seed(5))).view_as(
        x
    )
    measured = slope(defense, classifier, x, direction)
    unrolled, identity = (
        claimed_slope(defense, classifier, x, direction, View(backward=backward))
        for backward in ("unrolled", "identity")
    )
    torch.testing.assert_close(unrolled, measured, rtol=2e-2, atol=2e-3)
    assert not torch.allclose(identity, measured, rtol=2e-2, atol=2e-3)


def test_many_unrolled_steps_hold_little_more_than_one() -> None:
    loaded = load_model("tiny")
    classifier = Undefended(loaded.classifier(["cat", "dog", "fire engine"], ["a photo of a {}."]))
    x, sizes = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(5)), []
    for steps in (1, 4):
        saved, leaf = [], x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=saved: kept.append(t.numel()) or t, lambda t: t):
            ET3(steps=steps).differentiable(classifier, leaf, View(backward="unrolled"))
        sizes.append(sum(saved))
    assert sizes[1] < 1.2 * sizes[0] + 40 * x.numel()


def test_it_is_so_on_a_real_tower_whose_logits_have_a_gradient_of_their_own() -> None:
    loaded = load_model("tiny")
    classifier = Undefended(loaded.classifier(["cat", "dog", "fire engine"], ["a photo of a {}."]))
    generator = torch.Generator().manual_seed(5)
    x = 0.3 + 0.4 * torch.rand(1, 3, 48, 48, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(1, x[0].numel(), generator=generator)).view_as(x)
    defense = ET3(step_size=5, eps=50)
    measured = slope(defense, classifier, x, direction, step=0.05)
    unrolled, identity = (
        claimed_slope(defense, classifier, x, direction, View(backward=backward))
        for backward in ("unrolled", "identity")
    )
    torch.testing.assert_close(unrolled, measured, rtol=2e-2, atol=2e-3)
    assert not torch.allclose(identity, measured, rtol=2e-2, atol=2e-3)


def test_values_do_not_depend_on_the_gradient_even_in_a_chain() -> None:
    """Its steps take a gradient through the defence inside, which has several."""
    defended = defend(LinearClip(curved=True), [ET3(), TTC(threshold=9)])
    values = []
    for backward in ("identity", "surrogate", "unrolled"):
        leaf = images().requires_grad_()
        logits = defended.logits(leaf, View(backward=backward))
        assert torch.isfinite(torch.autograd.grad(logits[:, 0].sum(), leaf)[0]).all()
        values.append(logits.detach())
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_passes_are_those_that_it_declares() -> None:
    classifier = Undefended(Linear())
    ET3(steps=5).logits(classifier, images(3), View())
    assert (classifier.count.forward, classifier.count.backward) == (3 * 6, 3 * 5)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = images(5), defend(LinearClip(), [ET3()])
    together = defended.logits(x, View())
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], together[3], rtol=1e-5, atol=1e-6)


def test_a_ball_without_a_radius_is_refused() -> None:
    with pytest.raises(DefenseError, match="eps must be above 0, not 0"):
        ET3(eps=0)
