from __future__ import annotations

import pytest
import torch
from defended_models import LinearClip, images

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.bit_depth import BitDepth
from clipguard.defenses.registry import parse_defenses

CLASSIFIER, VIEW = Undefended(LinearClip()), View()


def test_values_are_rounded_to_levels_of_which_0_and_1_are_two() -> None:
    x = torch.tensor([0.0, 0.1, 0.3, 0.49, 0.51, 0.8, 0.85, 1.0])
    one, two = (BitDepth(bits=bits).purify(CLASSIFIER, x, VIEW).tolist() for bits in (1, 2))
    assert one == [0, 0, 0, 0, 1, 1, 1, 1]
    assert two == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    levels = BitDepth().purify(CLASSIFIER, torch.linspace(0, 1, 1001), VIEW).unique()
    torch.testing.assert_close(levels, torch.arange(32) / 31)


def test_8_bits_leave_an_8_bit_image_as_it_is() -> None:
    x = torch.arange(256) / 255
    assert torch.equal(BitDepth(bits=8).purify(CLASSIFIER, x, VIEW), x)


def test_the_gradient_is_the_identity_or_that_of_smooth_rounding() -> None:
    model, x = LinearClip(curved=True), images()
    defended, gradients = defend(model, [BitDepth(bits=3)]), []
    for backward in ("identity", "surrogate"):
        leaf = x.clone().requires_grad_()
        logits = defended.logits(leaf, View(backward=backward))
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), leaf)[0])
    rounded = ((x * 7).round() / 7).requires_grad_()
    at_rounded = torch.autograd.grad(model(rounded)[:, 0].sum(), rounded)[0]
    torch.testing.assert_close(gradients[0], at_rounded)
    torch.testing.assert_close(gradients[1], at_rounded * 3 * (x * 7 - (x * 7).round()) ** 2)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = images(5), defend(LinearClip(), [BitDepth()])
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], defended.logits(x, View())[3])


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_that_there_are_not_are_refused(bits: int) -> None:
    with pytest.raises(DefenseError, match=f"'bit-depth': bits must be from 1 to 8, not {bits}"):
        parse_defenses(f"bit-depth(bits={bits})")
