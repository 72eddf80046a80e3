from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from defended_models import LinearClip, images
from PIL import Image
from torch import Tensor

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.jpeg import JPEG
from clipguard.defenses.registry import parse_defenses

CLASSIFIER, VIEW = Undefended(LinearClip()), View()


def picture(height: int, width: int) -> Tensor:
    """(2, 3, height, width): waves with a little noise, of 8-bit values."""
    down, right = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 5, width), indexing="ij")
    waves = torch.stack([torch.sin(down + right), torch.cos(2 * right), torch.sin(3 * down)])
    both = torch.stack([waves, waves.flip(0)]) * 0.3 + 0.5
    both = both + 0.02 * torch.randn(both.shape, generator=torch.Generator().manual_seed(0))
    return (both.clamp(0, 1) * 255).round() / 255


def read_back(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("quality", [10, 75, 100])
def test_images_are_what_is_read_back(quality: int) -> None:
    x = picture(32, 20)
    wanted = torch.stack([read_back(image, quality) for image in x])
    torch.testing.assert_close(JPEG(quality=quality).purify(CLASSIFIER, x, VIEW), wanted)
    assert not torch.allclose(wanted, x, atol=1 / 255)


def test_values_between_grey_levels_are_rounded() -> None:
    x = picture(16, 16)
    assert torch.equal(JPEG().purify(CLASSIFIER, x - 0.4 / 255, VIEW), JPEG().purify(CLASSIFIER, x, VIEW))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (37, 21)])
@pytest.mark.parametrize("quality", [50, 75, 95])
def test_the_smooth_one_is_near_the_real_one(height: int, width: int, quality: int) -> None:
    """Nearer than the image itself is: the same coefficients are lost."""
    x, defense = picture(height, width), JPEG(quality=quality)
    real = defense.purify(CLASSIFIER, x, VIEW)
    smooth = defense.differentiable(CLASSIFIER, x, VIEW)
    error, change = (255 * (other - real).abs().mean() for other in (smooth, x))
    assert error < 0.6 * change
    assert error < 2


def test_the_gradient_of_the_smooth_one_is_exact() -> None:
    x = (0.2 + 0.6 * torch.rand(1, 3, 11, 16, generator=torch.Generator().manual_seed(2))).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: JPEG().differentiable(CLASSIFIER, y, VIEW), x, eps=1e-7, atol=1e-4)


def test_half_precision_of_the_search_is_of_the_classifier_alone() -> None:
    x = picture(32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        got = JPEG().differentiable(CLASSIFIER, x, VIEW)
    assert torch.equal(got, JPEG().differentiable(CLASSIFIER, x, VIEW))


def test_the_gradient_is_the_identity_or_that_of_the_smooth_one() -> None:
    model, x = LinearClip(curved=True), images()
    defended, gradients, values = defend(model, [JPEG()]), [], []
    for backward in ("identity", "surrogate"):
        leaf = x.clone().requires_grad_()
        logits = defended.logits(leaf, View(backward=backward))
        values.append(logits.detach())
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), leaf)[0])
    assert torch.equal(values[0], values[1])
    purified = JPEG().purify(CLASSIFIER, x, VIEW).requires_grad_()
    at_purified = torch.autograd.grad(model(purified)[:, 0].sum(), purified)[0]
    torch.testing.assert_close(gradients[0], at_purified)
    leaf = x.clone().requires_grad_()
    smooth = JPEG().differentiable(CLASSIFIER, leaf, VIEW)
    torch.testing.assert_close(gradients[1], torch.autograd.grad(smooth, leaf, at_purified)[0])


def test_a_row_does_not_depend_on_the_others() -> None:
    x = picture(32, 32)
    torch.testing.assert_close(JPEG().purify(CLASSIFIER, x[1:], VIEW)[0], JPEG().purify(CLASSIFIER, x, VIEW)[1])


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_that_there_is_not_is_refused(quality: int) -> None:
    with pytest.raises(DefenseError, match=f"quality must be from 1 to 100, not {quality}"):
        parse_defenses(f"jpeg(quality={quality})")
