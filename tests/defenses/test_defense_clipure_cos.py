from __future__ import annotations

import math

import pytest
import torch
from defended_models import LinearClip, claimed_slope, images, prompts, slope
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.clipure_cos import CLIPureCos, anchor


def published(u: Tensor, anchor: Tensor, steps: int, size: float) -> Tensor:
    """One embedding as in the authors' loop, by automatic differentiation."""
    for _ in range(steps):
        leaf = u.clone().requires_grad_()
        g = torch.autograd.grad(F.cosine_similarity(leaf, anchor, dim=0), leaf)[0]
        u = F.normalize(u + size * g / g.norm(), dim=0)
    return u


def degrees(one: Tensor, other: Tensor) -> float:
    return math.degrees(math.acos(F.cosine_similarity(one, other, dim=-1).item()))


@pytest.mark.parametrize(("steps", "size"), [(1, 30), (9, 30), (10, 30), (5, 0.3)])
def test_the_steps_are_those_of_the_published_loop_for_a_batch_of_one(steps: int, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    toward = torch.randn(16, generator=generator, dtype=torch.float64)
    purified = CLIPureCos(steps=steps, step_size=size).purified(features, toward)
    wanted = torch.stack([row.norm() * published(F.normalize(row, dim=0), toward, steps, size) for row in features])
    torch.testing.assert_close(purified, wanted, rtol=1e-6, atol=1e-6)


def test_an_even_number_of_steps_is_no_defence() -> None:
    """Of the images within 88.09 degrees of the anchor, and here there are some beyond."""
    model, x = LinearClip(), images(200)
    classifier = Undefended(model, prompts())
    near = (model.embed(x) * F.normalize(anchor(classifier), dim=0)).sum(dim=1) > 1 / math.sqrt(901)
    assert 3 < near.sum() < 197
    logits = CLIPureCos().logits(classifier, x, View())
    torch.testing.assert_close(logits[near], model(x)[near])
    assert ((logits - model(x)).abs().amax(dim=1) > 0.1)[~near].all()


@pytest.mark.parametrize(
    ("steps", "before", "after"),
    [(1, 78.5, -9.59), (2, 78.5, 78.5), (9, 78.5, -9.59), (10, 78.5, 78.5), (1, 120, 31.91), (10, 120, -56.18)],
)
def test_a_step_turns_an_embedding_by_88_degrees_toward_the_anchor(steps: int, before: float, after: float) -> None:
    """By atan(30) = 88.09; images and texts of CLIP are about 78.5 degrees apart."""
    angle = math.radians(before)
    feature = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]])
    x, y, z = CLIPureCos(steps=steps).purified(feature, torch.tensor([1.0, 0.0, 0.0]))[0].tolist()
    assert math.degrees(math.atan2(y, x)) == pytest.approx(after, abs=0.006)
    assert z == 0


def test_small_steps_converge_to_the_anchor() -> None:
    classifier, x = Undefended(LinearClip(), prompts()), images()
    goal = anchor(classifier)
    purified = CLIPureCos(steps=200, step_size=0.02).embed(classifier, x, View(), normalize=True)
    assert all(degrees(row, goal) < 1.2 for row in purified)


def test_the_anchor_is_the_mean_of_80_prompts_without_a_name_and_is_encoded_once() -> None:
    texts = prompts()
    classifier = Undefended(LinearClip(), texts)
    lengths = torch.tensor([[len(template(""))] for template in OPENAI_IMAGENET_TEMPLATES])
    assert len(lengths) == 80
    wanted = F.normalize(texts.model.encode_text(lengths), dim=1).mean(dim=0)
    before = texts.model.passes
    for _ in range(3):
        torch.testing.assert_close(anchor(classifier), wanted)
    assert texts.model.passes == before + 1


@pytest.mark.parametrize("defense", [CLIPureCos(), CLIPureCos(steps=3, step_size=0.3)])
def test_the_unrolled_gradient_is_that_of_the_defended_logits(defense: CLIPureCos) -> None:
    """Of the published steps it is the model's own, since they do nothing."""
    classifier, x = Undefended(LinearClip(curved=True), prompts()), images(1)
    direction = F.normalize(torch.randn(1, 108, generator=torch.Generator().manual_seed(5))).view_as(x)
    unrolled = claimed_slope(defense, classifier, x, direction, View(backward="unrolled"))
    torch.testing.assert_close(unrolled, slope(defense, classifier, x, direction), rtol=1e-2, atol=2e-3)


def test_the_identity_is_the_gradient_as_if_the_embedding_were_untouched() -> None:
    model, x, defense = LinearClip(), images(1), CLIPureCos(steps=1)
    classifier = Undefended(model, prompts())
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(defense.logits(classifier, leaf, View())[0, 0], leaf)[0]
    wanted = torch.autograd.grad(model.score(model.embed(leaf))[0, 0], leaf)[0]
    torch.testing.assert_close(gradient, wanted)


def test_a_row_does_not_depend_on_the_others_and_an_embedding_keeps_its_length() -> None:
    x, model = images(5), LinearClip()
    defended = defend(model, [CLIPureCos(steps=9)], prompts())
    together = defended.logits(x, View())
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], together[3], rtol=1e-5, atol=1e-6)
    lengths = defended.embed(x, View(), normalize=False).norm(dim=1)
    torch.testing.assert_close(lengths, model.embed(x, normalize=False).norm(dim=1))


def test_what_it_cannot_stand_around_or_do() -> None:
    with pytest.raises(DefenseError, match="clipure-cos needs a CLIP model's text tower"):
        defend(LinearClip(), [CLIPureCos()])
    with pytest.raises(DefenseError, match="steps must be at least 1, not 0"):
        CLIPureCos(steps=0)
