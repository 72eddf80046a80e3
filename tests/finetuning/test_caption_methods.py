"""AdvFLYP, the Delta-CLIP style and LEAF against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch
from clipguard.finetuning.methods.captions.advflyp import AdvFLYP
from clipguard.finetuning.methods.captions.contrastive import info_nce, pair_targets
from clipguard.finetuning.methods.captions.delta_clip import DeltaCLIPStyle
from clipguard.finetuning.methods.captions.leaf import LEAF

# Captions lie at 0 and 90 degrees of the plane, images at these angles: logits are s cos and s sin.
SCALE = 4.0
ADVERSARIAL, CLEAN, ORIGINAL = (0.9, 0.3), (0.2, 1.4), (0.6, 1.0)


def at(angles: tuple[float, ...], length: float = 1.0) -> Tensor:
    return (length * torch.tensor([[math.cos(a), math.sin(a)] for a in angles])).requires_grad_()


@pytest.fixture
def batch() -> Batch:
    """Lengths differ from 1: only directions count."""
    return Batch(
        torch.empty(0, 0),
        torch.empty(0, 0),
        SCALE,
        adversarial=at(ADVERSARIAL, 2.0),
        clean=at(CLEAN, 3.0),
        original_adversarial=at(ORIGINAL, 0.5).detach(),
        captions=at((0.0, math.pi / 2), 5.0),
        caption_ids=torch.tensor([7, 9]),
    )


def share(of: float, other: float) -> float:
    """Softmax of two logits."""
    return 1 / (1 + math.exp(other - of))


def contrastive() -> float:
    """Symmetrical InfoNCE of the two pairs."""
    a, b = ADVERSARIAL
    to_captions = share(SCALE * math.cos(a), SCALE * math.sin(a)), share(SCALE * math.sin(b), SCALE * math.cos(b))
    to_images = share(SCALE * math.cos(a), SCALE * math.cos(b)), share(SCALE * math.sin(b), SCALE * math.sin(a))
    return -sum(map(math.log, to_captions + to_images)) / 4


def kl(teacher: tuple[float, ...], student: tuple[float, ...]) -> float:
    """Mean KL over the two images, of their distributions over the two captions."""
    total = 0.0
    for a, b in zip(teacher, student, strict=True):
        for sign in (1, -1):
            p, q = (share(0.0, sign * SCALE * (math.sin(x) - math.cos(x))) for x in (a, b))
            total += p * math.log(p / q)
    return total / 2


def chord(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Mean distance of points on the circle."""
    return sum(2 * math.sin(abs(a - b) / 2) for a, b in zip(one, other, strict=True)) / 2


def test_advflyp_by_hand(batch: Batch) -> None:
    method = AdvFLYP(lam_feature=0.5, lam_logit=3.0)
    terms = method.terms(batch, 0.0)
    assert terms["contrastive"].item() == pytest.approx(contrastive(), rel=1e-5)
    feature = 0.5 * (chord(ADVERSARIAL, ORIGINAL) + chord(ADVERSARIAL, CLEAN))
    assert terms["feature"].item() == pytest.approx(feature, rel=1e-5)
    logit = 3 * (kl(ADVERSARIAL, ORIGINAL) + kl(ADVERSARIAL, CLEAN))
    assert terms["logit"].item() == pytest.approx(logit, rel=1e-5)
    assert method.needs(0.0) == {"captions", "adversarial", "clean", "original_adversarial"}
    sum(terms.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert batch.clean is not None
    assert batch.clean.grad is not None  # nothing is detached
    assert batch.clean.grad.abs().sum() > 0


def test_towers_that_are_the_same_pull_nowhere(batch: Batch) -> None:
    """At the first step: a distance that is rounding has no direction worth a gradient."""
    assert batch.adversarial is not None
    same = batch.adversarial.detach()
    near = replace(batch, original_adversarial=same * (1 + 1e-7), clean=same)
    AdvFLYP(lam_logit=0).terms(near, 0.0)["feature"].backward()  # type: ignore[no-untyped-call]
    assert batch.adversarial.grad is not None
    assert batch.adversarial.grad.abs().max() < 1e-3


def test_without_regularisers_it_is_plain_and_the_delta_clip_style(batch: Batch) -> None:
    plain, other = AdvFLYP(lam_feature=0, lam_logit=0), DeltaCLIPStyle()
    assert plain.needs(0.0) == other.needs(0.0) == {"captions", "adversarial"}
    assert plain.terms(batch, 0.0).keys() == {"contrastive"}
    assert torch.equal(plain.terms(batch, 0.0)["contrastive"], other.terms(batch, 0.0)["contrastive"])
    assert other.terms(batch, 0.0)["contrastive"].item() == pytest.approx(contrastive(), rel=1e-5)
    assert batch.adversarial is not None
    for method in (AdvFLYP(), plain, other):
        values = method.attack_objective(batch.adversarial, batch)
        assert values.shape == (2,)
        assert values.mean().item() == pytest.approx(contrastive(), rel=1e-5)
        assert not method.divisible()
        assert method.images_meet()
    assert AdvFLYP().text_mode() == "frozen"
    assert other.text_mode() == "encoder"
    assert DeltaCLIPStyle(text_lr=0.5).text_learning_rate() == 0.5


def test_gradients_reach_captions_where_they_have_any(batch: Batch) -> None:
    DeltaCLIPStyle().terms(batch, 0.0)["contrastive"].backward()  # type: ignore[no-untyped-call]
    assert batch.captions is not None
    assert batch.captions.grad is not None
    assert batch.captions.grad.abs().sum() > 0


def test_a_caption_that_two_images_have_is_right_for_both() -> None:
    """Three images, of which the first and the last have one caption: half of the target on each of the two."""
    ids = torch.tensor([5, 6, 5])
    half, one = pair_targets(ids, "positive"), pair_targets(ids, "negative")
    assert torch.equal(half, torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]))
    assert torch.equal(one, torch.eye(3))
    images, captions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    batch = Batch(torch.empty(0, 0), torch.empty(0, 0), 2.0, captions=captions, caption_ids=ids)
    # Logits 2, 0, 2 for the first image and the first caption, 0, 2, 0 for the second.
    first = math.log(2 * math.exp(2) + 1) - 2
    second = math.log(math.exp(2) + 2) - 2
    for duplicates in ("positive", "negative"):  # alike texts have alike logits, so that the values are the same ...
        values = info_nce(images, batch, duplicates)  # type: ignore[arg-type]
        assert values.tolist() == pytest.approx([first, second, first], rel=1e-5)
    # ... but where two images of one caption differ, only the targets of CLIP pull the caption to one of them.
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    together, against = (info_nce(apart, batch, how) for how in ("positive", "negative"))  # type: ignore[arg-type]
    log_all = math.log(math.exp(2) + 1 + math.exp(1.2))
    assert 2 * together[0].item() == pytest.approx(first + log_all - (2 + 1.2) / 2, rel=1e-5)
    assert 2 * against[0].item() == pytest.approx(first + log_all - 2, rel=1e-5)


def test_leaf_by_hand() -> None:
    """Distances of (3, 4) and (0, 2) from the origin: 25 and 4."""
    edited = torch.tensor([[3.0, 4.0], [1.0, 1.0]], requires_grad=True)
    original = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    batch = Batch(torch.empty(0, 0), torch.empty(0, 0), SCALE, edited_captions=edited, original_captions=original)
    method = LEAF()
    terms = method.terms(batch, 0.0)
    assert terms["distance"].item() == (25 + 4) / 2
    terms["distance"].backward()  # type: ignore[no-untyped-call]
    assert torch.equal(edited.grad, torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    candidates = torch.stack([edited.detach(), original], dim=1)
    assert torch.equal(method.edit_objective(candidates, replace(batch)), torch.tensor([[25.0, 0.0], [4.0, 0.0]]))
    assert method.needs(0.0) == {"original_captions", "edited_captions"}
    assert method.divisible()
    assert not method.sees_images()


@pytest.mark.parametrize("options", [{"k": 0}, {"rho": 0}, {"k": 1.5}])
def test_a_budget_is_a_whole_number(options: dict[str, float]) -> None:
    with pytest.raises(FinetuneError, match="whole number of at least 1"):
        LEAF(**options)  # type: ignore[arg-type]
