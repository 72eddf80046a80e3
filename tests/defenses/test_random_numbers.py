from __future__ import annotations

import torch
from defended_models import SIDE, images
from scipy.stats import kstest

from clipguard.defenses.draws import Draws


def test_normal_numbers_are_normal_and_independent() -> None:
    numbers = Draws().rows(images(4)).normal(3, 50, 67)
    assert numbers.shape == (4, 3, 50, 67)
    assert kstest(numbers.flatten().numpy(), "norm").pvalue > 1e-3
    first, second = numbers.flatten(1)[:, :5025], numbers.flatten(1)[:, 5025:]  # cosines and sines of the same angles
    both = torch.stack([first.flatten(), second.flatten(), first.flatten() ** 2, second.flatten() ** 2])
    torch.testing.assert_close(torch.corrcoef(both), torch.eye(4), rtol=0, atol=0.03)


def test_parts_are_others_whatever_was_drawn_before() -> None:
    x = images(5)
    draws = Draws().rows(x)
    numbers = [draws.part(part).uniform(SIDE) for part in (0, 1, 2)]
    own = draws.uniform(SIDE)
    assert len(torch.stack([own, *numbers]).unique()) == 4 * 5 * SIDE
    assert torch.equal(draws.part(1).uniform(SIDE), numbers[1])
    assert torch.equal(Draws().rows(x[2:3]).part(1).uniform(SIDE)[0], numbers[1][2])
