"""`attack`: the engine for any module, from tensors to tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_models import small_conv, uniform

from clipguard.api.attack import attack
from clipguard.attacks.threat import ThreatModel
from clipguard.core.eps import Norm
from clipguard.core.errors import AttackError


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_end_to_end(norm: Norm) -> None:
    model, images, eps = small_conv(), uniform(12, 3, 8, 8), {"linf": 4 / 255, "l2": 0.2}[norm]
    labels = model(images).argmax(dim=1)
    labels[5] = (labels[5] + 1) % 10
    result = attack(model, images, labels, eps=eps, attack="apgd-ce(iterations=20)", norm=norm, batch_size=5)
    assert result.x_adv.shape == images.shape
    assert result.x_adv.dtype == torch.float32
    assert ThreatModel(norm).contains(result.x_adv, images, torch.full((12,), eps)).all()
    predictions = model(result.x_adv).argmax(dim=1)
    assert torch.equal(result.prediction, predictions)
    assert torch.equal(result.robust, predictions == labels)
    assert 0 < int(result.robust.sum()) < 11
    assert result.robust_accuracy == pytest.approx(int(result.robust.sum()) / 12)
    assert result.broken_by[5] == "clean"
    assert torch.equal(result.x_adv[5], images[5])
    assert set(result.broken_by) == {"clean", "apgd-ce", None}
    assert [o.index for o in result.outcomes] == list(range(12))
    assert result.costs["clean"].forward == 12
    again = attack(model, images, labels, eps=eps, attack="apgd-ce(iterations=20)", norm=norm, batch_size=12)
    assert torch.allclose(again.x_adv, result.x_adv, atol=1e-3)


def test_survivors_come_with_the_strongest_image_found() -> None:
    model, images = small_conv(), uniform(6, 3, 8, 8)
    labels = model(images).argmax(dim=1)
    result = attack(model, images, labels, eps=0.002, attack="pgd-10")
    for i in range(6):
        if result.robust[i]:
            logits = model(result.x_adv[i : i + 1])[0].detach()
            others = torch.cat([logits[: labels[i]], logits[labels[i] + 1 :]])
            margin = result.outcomes[i].eps_outcomes[0].margin
            assert margin == pytest.approx(float(logits[labels[i]] - others.max()), abs=1e-4)
            assert margin < result.outcomes[i].clean_margin
    assert result.robust.any()


def test_quantized_images_are_8_bit() -> None:
    model = small_conv()
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    labels = model(images).argmax(dim=1)
    result = attack(model, images, labels, eps=8 / 255, attack="apgd-ce(iterations=5)", quantize=True)
    assert torch.equal(result.x_adv, (result.x_adv * 255).round() / 255)
    assert not result.robust.all()


def test_double_precision_images_are_taken_as_they_are_seen_by_the_model() -> None:
    model, images = small_conv(), uniform(3, 3, 8, 8)
    labels = model(images).argmax(dim=1)
    for other in (images.double(), images.half()):
        result = attack(model, other, labels, eps=0.05, attack="pgd-3")
        assert result.x_adv.dtype == torch.float32
        assert torch.equal(model(result.x_adv).argmax(dim=1), result.prediction)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm": "l1"}, "Unknown norm 'l1'; use one of linf, l2"),
        ({"eps": -1}, "at least 0"),
        ({"eps": float("nan")}, "at least 0"),
        ({"eps": float("inf")}, "at least 0"),
        ({"attack": "apdg-ce"}, "Did you mean 'apgd-ce'"),
        ({"labels": torch.zeros(2).long()}, "3 images and 2 labels"),
        ({"images": torch.zeros(0, 3, 8, 8), "labels": torch.zeros(0).long()}, "at least one"),
        ({"labels": torch.tensor([0, 99, 1])}, "image 1 has 99"),
        ({"images": 255 * torch.ones(3, 3, 8, 8)}, r"\[0,1\]"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"eps_mode": "up"}, "Unknown `eps_mode` 'up'"),
    ],
)
def test_mistakes(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"images": uniform(3, 3, 8, 8), "labels": torch.zeros(3).long(), "eps": 0.1} | changed
    with pytest.raises(AttackError, match=message):
        attack(small_conv(), given.pop("images"), given.pop("labels"), **given)


def test_inference_mode_and_no_grad() -> None:
    model, images = small_conv(), uniform(4, 3, 8, 8)
    labels = model(images).argmax(dim=1)
    expected = attack(model, images, labels, eps=0.05, attack="pgd-3").x_adv
    with torch.no_grad():
        assert torch.equal(attack(model, images, labels, eps=0.05, attack="pgd-3").x_adv, expected)
    with torch.inference_mode():
        assert torch.equal(attack(model, images, labels, eps=0.05, attack="pgd-3").x_adv, expected)
