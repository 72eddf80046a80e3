from __future__ import annotations

import torch
from defended_models import LinearClip, images

from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Defended, Undefended, defend
from clipguard.defenses.methods.ttc import TTC


def test_the_steps_are_those_of_a_linear_encoder_by_hand() -> None:
    """f(x) = W x: the gradient of ||f(x + d) - f(x)||^2 is 2 W^T W d."""
    model, x, view = LinearClip(), images(), View()
    defense = TTC(threshold=1e9)  # every image is moved
    start = (2 * view.draws.rows(x).uniform(*x.shape[1:]) - 1) * 4 / 255
    gram = model.weight.T @ model.weight
    first = (start + (start.flatten(1) @ gram).view_as(x).sign() / 255).clamp(-4 / 255, 4 / 255)
    second = (first + (first.flatten(1) @ gram).view_as(x).sign() / 255).clamp(-4 / 255, 4 / 255)
    weights = torch.tensor([0.0, 2.0, 4.0]).exp()
    wanted = x + (weights[0] * start + weights[1] * first + weights[2] * second) / weights.sum()
    torch.testing.assert_close(defense.purify(Undefended(model), x, view), wanted)


def test_an_image_whose_embedding_moves_keeps_the_noise_alone() -> None:
    model, x, view = LinearClip(), images(), View()
    defense = TTC(threshold=0)
    noise = (2 * view.draws.rows(x).uniform(*x.shape[1:]) - 1) * 4 / 255
    torch.testing.assert_close(defense.purify(Undefended(model), x, view), x + noise)
    assert not defense.flagged(Undefended(model), x, view).any()


def test_the_gradient_is_the_identity_or_that_of_smooth_steps_and_the_values_stay() -> None:
    model, x = LinearClip(curved=True), images()
    defended = Defended(TTC(threshold=1e9), Undefended(model))
    values, gradients = [], []
    for backward in ("identity", "surrogate"):
        leaf = x.clone().requires_grad_()
        logits = defended.logits(leaf, View(backward=backward))
        values.append(logits.detach())
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), leaf)[0])
    assert torch.equal(values[0], values[1])
    purified = defended.defense.purify(defended.classifier, x, View().of(defended.defense, x)).requires_grad_()
    at_purified = torch.autograd.grad(model(purified)[:, 0].sum(), purified)[0]
    torch.testing.assert_close(gradients[0], at_purified)
    assert not torch.allclose(gradients[0], gradients[1])


def test_a_row_does_not_depend_on_the_others() -> None:
    x = images(5)
    defended = defend(LinearClip(), [TTC()])
    together = defended.logits(x, View())
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], together[3], rtol=1e-5, atol=1e-6)
