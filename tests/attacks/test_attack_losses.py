"""Losses: values by hand, the invariances they are chosen for, few classes and ties."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipguard.attacks import losses

LOGITS = torch.tensor([[5.0, 3.0, 2.0, -1.0, 0.0], [1.0, 4.0, 2.0, 3.0, 0.0]])
LABELS, TARGETS = torch.tensor([0, 0]), torch.tensor([2, 3])
ALL = (losses.cross_entropy, losses.negative_margin, losses.target_difference, losses.dlr, losses.dlr_targeted)


def test_values_by_hand() -> None:
    assert losses.margin(LOGITS, LABELS).tolist() == [2, -3]
    assert losses.negative_margin(LOGITS, LABELS, TARGETS).tolist() == [-2, 3]
    assert losses.target_difference(LOGITS, LABELS, TARGETS).tolist() == [-3, 2]
    # the largest are 5, 3, 2, 0 and 4, 3, 2, 1
    assert losses.dlr(LOGITS, LABELS, TARGETS).tolist() == pytest.approx([-2 / 3, 3 / 2])
    assert losses.dlr_targeted(LOGITS, LABELS, TARGETS).tolist() == pytest.approx([-3 / 4, 2 / 2.5])
    expected = F.cross_entropy(LOGITS, LABELS, reduction="none")
    assert losses.cross_entropy(LOGITS, LABELS, TARGETS).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("loss", [losses.dlr, losses.dlr_targeted])
def test_dlr_does_not_see_scale_and_shift(loss: losses.Loss) -> None:
    for scale, shift in ((100.0, 0.0), (0.01, -3.0), (1.0, 50.0)):
        moved = loss(scale * LOGITS + shift, LABELS, TARGETS)
        assert moved.tolist() == pytest.approx(loss(LOGITS, LABELS, TARGETS).tolist(), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("loss", ALL)
def test_few_classes(loss: losses.Loss, classes: int) -> None:
    logits = LOGITS[:, :classes].clone().requires_grad_()
    targets = torch.tensor([1, 1])
    value = loss(logits, LABELS, targets)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert value.shape == (2,)
    assert torch.isfinite(value).all()
    assert value[0] < value[1]  # right, wrong
    if loss is not losses.cross_entropy:
        assert value[0] < 0 < value[1]
    assert grad[0, 0] < 0 < grad[0, 1]


@pytest.mark.parametrize("target", [1, 2])
def test_with_three_classes_the_last_one_is_a_target_like_any_other(target: int) -> None:
    logits = torch.tensor([[5.0, 3.0, 2.0]], requires_grad=True)
    value = losses.dlr_targeted(logits, torch.tensor([0]), torch.tensor([target]))
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert grad[0, 0] == -1
    assert grad[0, target] == 1


@pytest.mark.parametrize(
    "logits", [[1.0, 1, 1, 1, 1], [2.0, 2, 2, 0, 0], [2.0, 2, 0, 0, 0], [1.0, 1, 1, 1, 0], [0.0, 0, 1, 1, 1]]
)
@pytest.mark.parametrize("loss", ALL)
def test_ties_give_finite_values_and_gradients(loss: losses.Loss, logits: list[float]) -> None:
    for scale in (1.0, 100.0):
        z = (scale * torch.tensor([logits])).requires_grad_()
        for target in (1, 4):
            value = loss(z, torch.tensor([0]), torch.tensor([target]))
            (grad,) = torch.autograd.grad(value.sum(), z)
            assert torch.isfinite(value).all()
            assert torch.isfinite(grad * 1e4).all()  # room for the model's own derivative


@pytest.mark.parametrize("lead", [1.0, 20.0, 60.0])
def test_cross_entropy_keeps_its_direction_when_the_softmax_saturates(lead: float) -> None:
    logits = torch.tensor([[lead, 0.0, -5.0]], requires_grad=True)
    value = losses.cross_entropy(logits, torch.tensor([0]), torch.tensor([1]))
    (grad,) = torch.autograd.grad(value.sum(), logits)
    double = logits.detach().double().requires_grad_()
    others = torch.logsumexp(double[:, 1:], dim=1)
    (expected,) = torch.autograd.grad(F.softplus(others - double[:, 0]).sum(), double)
    assert value.item() > 0
    assert grad[0].tolist() == pytest.approx(expected[0].tolist(), rel=1e-4)
