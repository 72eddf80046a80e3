from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from defended_models import CLASSES, SIDE, LinearClip, images
from torch import Tensor, nn

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.anti_adversary import AntiAdversary


class Linear(nn.Module):
    """Logits W x, of a model that knows its normalisation or not."""

    def __init__(self, std: tuple[float, float, float] | None = None) -> None:
        super().__init__()
        weight = torch.randn(CLASSES, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0)) / 10
        self.weight = nn.Parameter(weight, requires_grad=False)
        if std is not None:
            self.preprocessing = SimpleNamespace(std=std, image_size=(SIDE, SIDE))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T


@pytest.mark.parametrize("std", [(0.3, 0.2, 0.1), None])
def test_the_steps_are_those_of_a_linear_classifier_by_hand(std: tuple[float, float, float] | None) -> None:
    """f(x) = W x: the gradient of CE(f(x), y) is W^T (softmax(f(x)) - e_y)."""
    model, x = Linear(std), images()
    x[:, :, 0] = 0
    length = 0.15 * torch.tensor(std or (0.25, 0.25, 0.25)).view(1, 3, 1, 1)
    residual = torch.nn.functional.one_hot(model(x).argmax(dim=1), CLASSES)
    wanted = x
    for _ in range(2):
        wanted = wanted - length * ((model(wanted).softmax(dim=1) - residual) @ model.weight).view_as(x).sign()
    moved = AntiAdversary().purify(Undefended(model), x, View())
    torch.testing.assert_close(moved, wanted)
    assert moved.min() < 0  # nothing keeps it in [0,1], as published
    assert (model(moved).softmax(dim=1).amax(dim=1) > model(x).softmax(dim=1).amax(dim=1)).all()


def test_it_needs_logits_alone_and_more_steps_go_farther() -> None:
    model, x = Linear(), images()
    once, thrice = (AntiAdversary(k=k).purify(Undefended(model), x, View()) for k in (1, 3))
    torch.testing.assert_close((once - x).abs().amax(), torch.tensor(0.0375))
    assert (thrice - x).abs().amax() > 2 * 0.0375
    assert AntiAdversary(k=3).cost(CLASSES) == (5, 3)


def test_a_surrogate_changes_the_gradient_and_no_value() -> None:
    defended = defend(LinearClip(curved=True), [AntiAdversary()])
    values, gradients = [], []
    for backward in ("identity", "surrogate"):
        leaf = images().requires_grad_()
        logits = defended.logits(leaf, View(backward=backward))
        values.append(logits.detach())
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), leaf)[0])
    assert torch.equal(values[0], values[1])
    assert torch.isfinite(gradients[1]).all()
    assert not torch.allclose(gradients[0], gradients[1])


def test_passes_are_those_that_it_declares() -> None:
    classifier = Undefended(LinearClip())
    AntiAdversary().logits(classifier, images(3), View())
    assert (classifier.count.forward, classifier.count.backward) == (3 * 4, 3 * 2)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = images(5), defend(LinearClip(), [AntiAdversary()])
    together = defended.logits(x, View())
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], together[3], rtol=1e-5, atol=1e-6)


def test_no_steps_are_refused() -> None:
    with pytest.raises(DefenseError, match="k must be at least 1, not 0"):
        AntiAdversary(k=0)
