from __future__ import annotations

import pytest
import torch
from defended_models import SIDE, LinearClip, images

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.methods.tte import TTE


def moved(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    out = torch.zeros_like(x)
    for i in range(SIDE):
        for j in range(SIDE):
            if 0 <= i - down < SIDE and 0 <= j - right < SIDE:
                out[:, :, i, j] = x[:, :, i - down, j - right]
    return out


def test_the_logits_are_the_mean_over_moved_and_mirrored_images() -> None:
    model, x, defense = LinearClip(curved=True), images(), TTE()
    views = [moved(x, *offset) for offset in defense.offsets((SIDE, SIDE))]
    wanted = sum(model(view) + model(view.flip(-1)) for view in views) / 10
    torch.testing.assert_close(defense.logits(Undefended(model), x, View()), wanted)
    alone = TTE(flip=False).logits(Undefended(model), x, View())
    torch.testing.assert_close(alone, sum(model(view) for view in views) / 5)
    assert (defense.cost(4), TTE(flip=False, crops=2).cost(4)) == ((10, 0), (3, 0))


def test_crops_are_distinct_within_an_eighth_and_drawn_from_the_seed() -> None:
    offsets = TTE(crops=40).offsets((224, 112))
    assert len(set(offsets)) == 41
    assert offsets[0] == (0, 0)
    assert max(abs(down) for down, _ in offsets) in range(20, 29)
    assert max(abs(right) for _, right in offsets) in range(10, 15)
    assert TTE(crops=40).offsets((224, 112)) == offsets != TTE(crops=40, seed=1).offsets((224, 112))
    assert len(set(TTE(crops=8).offsets((SIDE, SIDE)))) == 9  # all there are


def test_the_gradient_is_exact() -> None:
    x, direction = images(), torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    defended = defend(LinearClip(curved=True), [TTE()])
    leaf = x.clone().requires_grad_()
    slope = (torch.autograd.grad(defended.logits(leaf, View())[:, 0].sum(), leaf)[0] * direction).sum()
    above, below = (defended.logits(x + h * direction, View())[:, 0].sum() for h in (1e-3, -1e-3))
    torch.testing.assert_close((above - below) / 2e-3, slope, rtol=1e-2, atol=1e-3)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, defended = images(9), defend(LinearClip(), [TTE()])
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], defended.logits(x, View())[3])


def test_too_many_crops_are_refused() -> None:
    with pytest.raises(DefenseError, match=r"6x6 pixels have 8 different crops, fewer than crops=9"):
        TTE(crops=9).logits(Undefended(LinearClip()), images(), View())
    with pytest.raises(DefenseError, match="crops must be at least 0, not -1"):
        TTE(crops=-1)
