"""What `clipguard.attack` and `clipguard.doctor` take, and what they refuse with a cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attack_models import small_conv, uniform
from torch import nn

import clipguard
from clipguard.attacks.methods.apgd import APGD
from clipguard.core.errors import AttackError

IMAGES = uniform(3, 3, 8, 8)
LABELS = torch.tensor([1, 0, 2])
EITHER = pytest.mark.parametrize("function", [clipguard.attack, clipguard.doctor])


def call(function: Callable[..., Any], **changed: Any) -> Any:
    given = {"model": small_conv(), "images": IMAGES, "labels": LABELS, "eps": 4 / 255, "attack": "pgd-2"} | changed
    return function(given.pop("model"), given.pop("images"), given.pop("labels"), **given)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "255ths": ({"eps": 4}, "`eps` 4: did you mean 4 / 255"),
    "255ths as a float": ({"eps": 8.0}, "did you mean 8 / 255"),
    "one 255th": ({"eps": 1}, "did you mean 1 / 255"),
    "a tensor of 255ths": ({"eps": torch.tensor(4)}, "did you mean 4 / 255"),
    "l2 in 255ths": ({"eps": 128, "norm": "l2"}, "did you mean 128 / 255"),
    "text": ({"eps": "four"}, "`eps` 'four' is not a number"),
    "two": ({"eps": "4,8"}, "`eps` must be one number"),
    "none": ({"eps": None}, "`eps` takes numbers"),
    "one-hot labels": ({"labels": nn.functional.one_hot(LABELS, 10)}, r"give labels.argmax\(dim=1\)"),
    "a column": ({"labels": LABELS[:, None]}, r"give labels.squeeze\(1\)"),
    "one label": ({"labels": LABELS[0]}, "one number an image"),
    "halves": ({"labels": LABELS + 0.5}, "whole numbers"),
    "truths": ({"labels": LABELS > 0}, r"give labels.long\(\)"),
    "names": ({"labels": ["cat", "dog", "cat"]}, "class numbers"),
    "bytes": ({"images": (255 * IMAGES).byte()}, r"give images.float\(\) / 255"),
    "0 to 255": ({"images": 255 * IMAGES}, "give images / 255"),
    "channels last": ({"images": IMAGES.permute(0, 2, 3, 1)}, r"give images.permute\(0, 3, 1, 2\)"),
    "one image": ({"images": IMAGES[0]}, r"give images\[None\]"),
    "five dimensions": ({"images": IMAGES[None]}, "N, C, H, W"),
    "a list of images": ({"images": list(IMAGES)}, "torch.stack"),
    "one channel": ({"images": IMAGES[:, :1]}, r"The model fails on images \(B, 1, 8, 8\).*3 channels"),
    "a function": ({"model": lambda x: x}, "must be a torch.nn.Module, not function"),
    "a name": ({"model": "tiny"}, "needs `class_names`, a list"),
    "another device": ({"model": small_conv().to("meta")}, r"give images.to\('meta'\)"),
    "double precision": ({"model": small_conv().double()}, r"give model.float\(\)"),
    "batch size": ({"batch_size": "64"}, "`batch_size` must be a whole number"),
    "seed": ({"seed": 1.5}, "`seed` must be a whole number"),
    "attack": ({"attack": 3}, "name must be a text"),
}


@EITHER
@pytest.mark.parametrize(("changed", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_meant_otherwise_is_refused_with_the_cure(
    function: Callable[..., Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(AttackError, match=message) as caught:
        call(function, **changed)
    assert "\n" not in str(caught.value)


@EITHER
def test_a_loaded_model_needs_its_classes(function: Callable[..., Any]) -> None:
    with pytest.raises(AttackError, match="A loaded model needs `class_names`"):
        call(function, model=clipguard.load_model("tiny"))


def test_a_loaded_model_with_classes_is_its_classifier() -> None:
    model, data = clipguard.load_model("tiny"), clipguard.load_dataset("emoji-food")
    images = torch.stack([model.preprocess()(data.image(i)) for i in range(2)])
    options: dict[str, Any] = {"images": images, "labels": data.labels[:2], "eps": "4", "attack": APGD(iterations=3)}
    classes = {"class_names": data.class_names, "templates": data.templates}
    loaded = clipguard.attack(model, **options, **classes)
    module = clipguard.attack(model.classifier(data.class_names, data.templates), **options)
    assert torch.equal(loaded.x_adv, module.x_adv)


CURES: dict[str, Callable[[], dict[str, Any]]] = {
    "eps": lambda: {"eps": 4 / 255},
    "the whole cube": lambda: {"eps": 1.0},
    "an l2 ball on purpose": lambda: {"eps": 128.0, "norm": "l2"},
    "one-hot": lambda: {"labels": nn.functional.one_hot(LABELS, 10).argmax(dim=1)},
    "bytes": lambda: {"images": (255 * IMAGES).byte().float() / 255},
    "channels": lambda: {"images": IMAGES.permute(0, 2, 3, 1).permute(0, 3, 1, 2)},
    "float": lambda: {"model": small_conv().double().float()},
}


@pytest.mark.parametrize("cure", CURES.values(), ids=CURES)
def test_the_cures_run(cure: Callable[[], dict[str, Any]]) -> None:
    call(clipguard.attack, **cure())


@pytest.mark.parametrize("labels", [[1, 0, 2], (1, 0, 2), np.array([1, 0, 2]), LABELS.int(), LABELS.float()])
def test_labels_may_be_any_whole_numbers(labels: Any) -> None:
    expected = call(clipguard.attack)
    assert torch.equal(call(clipguard.attack, labels=labels).x_adv, expected.x_adv)
    assert torch.equal(call(clipguard.attack, images=IMAGES.numpy(), labels=labels).x_adv, expected.x_adv)
    assert torch.equal(call(clipguard.attack, eps=np.float64(4 / 255)).x_adv, expected.x_adv)


def test_an_error_that_is_not_the_models_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("clipguard.attacks.methods.pgd.PGD.update", fail)
    with pytest.raises(ZeroDivisionError):
        call(clipguard.attack, labels=small_conv()(IMAGES).argmax(dim=1))
