from __future__ import annotations

import pytest
import torch
from defended_models import LinearClip, images
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.draws import Draws, RowDraws
from clipguard.defenses.methods.doc import DOC

LIMIT = 4 / 255


def noise(draws: RowDraws, x: Tensor) -> Tensor:
    return (2 * draws.uniform(*x.shape[1:]) - 1) * LIMIT


def unit(x: Tensor) -> Tensor:
    return F.normalize(x.flatten(1), dim=1).view_as(x)


def by_hand(model: LinearClip, x: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """tau, delta_0 and delta_T for f(x) = W x, where the gradient of ||f(x + d) - f(x)|| points along W^T W d."""
    draws, here = view.draws.rows(x), x.flatten(1) @ model.weight.T
    copies = [(x + noise(draws, x)).flatten(1) @ model.weight.T for _ in range(5)]
    tau = 1 - sum(F.cosine_similarity(copy, here) for copy in copies) / 5
    start = delta = noise(draws, x)
    mean, gram = torch.zeros_like(x), model.weight.T @ model.weight
    for _ in range(4):
        g = unit((delta.flatten(1) @ gram).view_as(x))
        r = draws.normal(*x.shape[1:])
        r = unit(r - (r * g).sum(dim=(1, 2, 3), keepdim=True) * g)
        mean = 0.9 * mean + 0.1 * (g + r)
        delta = (delta + 3 / 255 * mean.sign()).clamp(-LIMIT, LIMIT)
    return tau, start, delta


def test_the_steps_are_those_of_a_linear_encoder_by_hand() -> None:
    model, x, view = LinearClip(), images(), View()
    tau, start, end = by_hand(model, x, view)
    weight = 1 / (1 + torch.exp(-200 * (0.002 - tau))).view(-1, 1, 1, 1)
    assert (weight > 0.01).all()
    assert (weight < 0.99).all()
    moved = DOC(threshold=0.002).purify(Undefended(model), x, view)
    torch.testing.assert_close(moved, x + weight * end + (1 - weight) * start)
    assert ((moved - x).abs() <= LIMIT + 1e-6).all()


def test_the_gate_goes_from_noise_to_the_counterattack_as_the_embedding_is_stabler() -> None:
    model, x, view = LinearClip(), images(), View()
    tau, start, end = by_hand(model, x, view)
    unstable, stable = DOC(threshold=0, sharpness=1e9), DOC(threshold=9, sharpness=1e9)
    torch.testing.assert_close(unstable.purify(Undefended(model), x, view), x + start)
    torch.testing.assert_close(stable.purify(Undefended(model), x, view), x + end)
    middle = tau.sort().values[:2].mean().item()
    flagged = DOC(threshold=middle).flagged(Undefended(model), x, view)
    assert flagged.tolist() == (tau < middle).tolist()
    assert flagged.sum() == 1


def test_both_branches_are_the_mean_over_both_ends() -> None:
    model, x, view = LinearClip(), images(), View()
    _, start, end = by_hand(model, x, view)
    relaxed = DOC().relaxed("both branches", Undefended(model), x, view)
    torch.testing.assert_close(relaxed, (model(x + start) + model(x + end)) / 2)


def test_another_seed_moves_an_image_elsewhere_and_the_same_one_does_not() -> None:
    defended, x = defend(LinearClip(), [DOC()]), images()
    one, again, other = (defended.logits(x, View(Draws(seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_a_surrogate_has_the_derivative_of_the_gate_and_changes_no_value() -> None:
    defended = defend(LinearClip(curved=True), [DOC(threshold=0.002)])
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
    DOC().logits(classifier, images(3), View())
    assert (classifier.count.forward, classifier.count.backward) == (3 * 11, 3 * 4)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = images(5), defend(LinearClip(), [DOC()])
    together = defended.logits(x, View())
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], together[3], rtol=1e-5, atol=1e-6)


def test_what_it_cannot_stand_around_or_do() -> None:
    with pytest.raises(DefenseError, match="needs a CLIP model's embeddings"):
        defend(torch.nn.Flatten(), [DOC()])
    with pytest.raises(DefenseError, match="momentum must be below 1, not 1"):
        DOC(momentum=1)
