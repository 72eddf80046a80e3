from __future__ import annotations

import math

import pytest
import torch
from defended_models import CLASSES, SIDE, LinearClip, images
from torch import Tensor, nn

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.smoothing import Smoothing, _log_shares
from clipguard.defenses.registry import parse_defenses


class Halfspace(nn.Module):
    """Two classes, by the sign of w x + b."""

    def __init__(self, scale: float = 1) -> None:
        super().__init__()
        self.weight = scale * torch.randn(3 * SIDE * SIDE, generator=torch.Generator().manual_seed(3))
        self.bias = -self.weight.sum() / 2

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1) @ self.weight + self.bias
        return torch.stack([value, -value], dim=1)


def test_the_votes_are_counted_over_the_noisy_copies() -> None:
    model, x, view, defense = LinearClip(), images(), View(), Smoothing(sigma=0.5, samples=70)
    draws = view.draws.rows(x)
    copies = [x + 0.5 * draws.part(i).normal(3, SIDE, SIDE) for i in range(70)]
    votes = torch.zeros(3, CLASSES)
    for copy in copies:
        for row, choice in enumerate(model(copy).argmax(dim=1).tolist()):
            votes[row, choice] += 1
    assert votes.max() < 70  # the votes differ
    wanted = (votes + 1) / (70 + CLASSES)
    got = defense.logits(Undefended(model), x, view).exp()
    leader = torch.nn.functional.one_hot(votes.argmax(dim=1), CLASSES) / 2 / (70 + CLASSES)
    torch.testing.assert_close(got, wanted + leader)


def test_the_share_of_votes_of_a_halfspace_is_the_normal_distribution_function() -> None:
    model, x = Halfspace(), images(2)
    margin = (x.flatten(1) @ model.weight + model.bias) / (0.3 * model.weight.norm())
    wanted = 0.5 * (1 + torch.erf(margin / math.sqrt(2)))
    assert ((wanted > 0.05) & (wanted < 0.95)).all()
    got = Smoothing(sigma=0.3, samples=4000).logits(Undefended(model), x, View()).exp()[:, 0]
    torch.testing.assert_close(got, wanted, rtol=0, atol=4 * 0.5 / math.sqrt(4000))


def test_of_equal_votes_the_lower_class_wins_and_nothing_is_infinite() -> None:
    logits = _log_shares(torch.tensor([[2, 2, 0], [0, 3, 3], [0, 0, 5]]))
    assert logits.isfinite().all()
    assert [(row == row.max()).nonzero().flatten().tolist() for row in logits] == [[0], [1], [2]]


def test_the_gradient_is_that_of_the_soft_vote() -> None:
    model, x, view = LinearClip(curved=True), images(), View()
    defense = Smoothing(samples=70)
    draws = view.draws.rows(x)
    leaf = x.clone().requires_grad_()
    logits = defense.logits(Undefended(model), leaf, view)
    torch.testing.assert_close(logits.detach(), defense.logits(Undefended(model), x, view), rtol=0, atol=0)
    got = torch.autograd.grad(logits[:, 2].sum(), leaf)[0]
    other = x.clone().requires_grad_()
    soft = sum(model(other + 0.25 * draws.part(i).normal(3, SIDE, SIDE)).softmax(dim=1) for i in range(70)) / 70
    torch.testing.assert_close(got, torch.autograd.grad(soft.log()[:, 2].sum(), other)[0], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_finite_where_probabilities_vanish() -> None:
    leaf = images().requires_grad_()
    logits = Smoothing(sigma=0.01, samples=4).logits(Undefended(Halfspace(1e4)), leaf, View())
    gradient = torch.autograd.grad(logits.sum(), leaf)[0]
    assert gradient.isfinite().all()
    assert gradient.any()


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = images(5), defend(LinearClip(), [Smoothing(samples=33)])
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], defended.logits(x, View())[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [("smoothing(sigma=0)", "sigma must be above 0, not 0"), ("smoothing(samples=0)", "samples must be at least 1")],
)
def test_options_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(DefenseError, match=message):
        parse_defenses(text)


def test_soft_votes_are_the_mean_softmax_of_the_copies() -> None:
    classifier, x, view = Undefended(LinearClip()), images(2), View()
    defense = Smoothing(samples=5)
    draws = view.draws.rows(x)
    copies = [classifier.logits(x + 0.25 * draws.part(k).normal(*x.shape[1:]), view).softmax(dim=1) for k in range(5)]
    relaxed = defense.relaxed("soft votes", classifier, x, view)
    torch.testing.assert_close(relaxed.exp(), torch.stack(copies).mean(dim=0))
