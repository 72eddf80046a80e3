"""The head: cosines and their gradients are exact sums, so no row's bits depend on where in which batch it stands."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.models.classifier import ZeroShotClassifier
from clipguard.models.preprocessing import Preprocessing

SIZE = Preprocessing((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Tower(nn.Module):
    """An image tower whose embedding is its first pixels, laid `offset` numbers behind the start of a buffer."""

    def __init__(self, width: int, offset: int) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.width, self.offset = width, offset

    def encode_image(self, images: Tensor, normalize: bool) -> Tensor:
        assert normalize
        rows = F.normalize(images.flatten(1)[:, : self.width], dim=1)
        buffer = torch.cat([rows.new_zeros(self.offset), rows.flatten()])
        return buffer[self.offset :].view_as(rows)


def classify(pixels: Tensor, text: Tensor, offset: int = 0) -> Tensor:
    return ZeroShotClassifier(Tower(len(text), offset), text, SIZE, "model")(pixels)  # type: ignore[no-any-return]


def exactly(features: Tensor, text: Tensor) -> Tensor:
    """The dot products of both, rounded to multiples of 2^-26, in whole numbers; then one rounding to float32."""

    def whole(values: Tensor) -> list[list[int]]:
        return [[round(Fraction(v) * 2**26) for v in row] for row in values.tolist()]

    columns = whole(text.T)
    sums = [[sum(a * b for a, b in zip(row, c, strict=True)) for c in columns] for row in whole(features)]
    return torch.from_numpy(np.array([[float(Fraction(s, 2**52)) for s in row] for row in sums]).astype(np.float32))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def text() -> Tensor:
    return F.normalize(torch.randn(45, 9, generator=torch.Generator().manual_seed(1)), dim=0)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5, 7, 13])
def test_logits_are_exact_sums_rounded_once_wherever_in_memory_a_row_begins(
    offset: int, pixels: Tensor, text: Tensor
) -> None:
    features = F.normalize(pixels.flatten(1)[:, :45], dim=1)
    assert torch.equal(classify(pixels, text, offset), exactly(features, text))


def test_a_row_has_its_bits_in_every_batch_and_its_gradient_too(pixels: Tensor, text: Tensor) -> None:
    weights = torch.randn(24, 9, generator=torch.Generator().manual_seed(2)) * 1e3

    def look(rows: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        x = pixels[rows].requires_grad_()
        logits = classify(x, text, offset)
        return logits.detach(), torch.autograd.grad((logits.softmax(dim=1) * weights[rows]).sum(), x)[0]

    everything = torch.arange(24)
    whole = look(everything, 0)
    for offset in (0, 1, 3, 6):
        for rows in (everything.flip(0), everything[-1:], everything[1::2], everything[-17:]):
            for part, all_of_them in zip(look(rows, offset), whole, strict=True):
                assert torch.equal(part, all_of_them[rows])


@pytest.mark.parametrize("classes", [2, 1000])
def test_the_gradient_is_as_near_to_float64_as_float32_can_be(classes: int, pixels: Tensor) -> None:
    text = F.normalize(torch.randn(45, classes, generator=torch.Generator().manual_seed(1)), dim=0)
    labels = torch.arange(24) % classes

    def gradient(logits_of: Any, x: Tensor) -> Tensor:
        return torch.autograd.grad(F.cross_entropy(100 * logits_of(x), labels, reduction="sum"), x)[0]

    def precise(x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1)[:, :45], dim=1) @ text.double()

    found = gradient(lambda x: classify(x, text), pixels.clone().requires_grad_())
    right = gradient(precise, pixels.double().requires_grad_())
    assert (found - right).abs().max() < 1e-5 * right.abs().max()


def test_a_row_that_is_no_number_stays_one_and_harms_no_other(pixels: Tensor, text: Tensor) -> None:
    broken = pixels.clone()
    broken[3] = torch.nan
    logits = classify(broken, text)
    assert logits[3].isnan().all()
    others = [i for i in range(24) if i != 3]
    assert torch.equal(logits[others], classify(pixels, text)[others])
    x = pixels.clone().requires_grad_()
    factor = torch.ones(24, 1)
    factor[3] = torch.inf
    (grad,) = torch.autograd.grad((classify(x, text) * factor).sum(), x)
    assert not grad[3].isfinite().all()
    assert grad[others].isfinite().all()


def test_a_gradient_of_zero_is_zero(pixels: Tensor, text: Tensor) -> None:
    x = pixels.clone().requires_grad_()
    (grad,) = torch.autograd.grad((classify(x, text) * 0.0).sum(), x)
    assert not grad.any()
