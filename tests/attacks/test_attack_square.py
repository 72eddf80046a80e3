"""Square attack: schedule, shapes of the squares, and where they can fall."""

from __future__ import annotations

import pytest
import torch
from attack_models import engine, labelled, run, small_conv, uniform
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from clipguard.attacks.methods.square import Square, bump, side_lengths, window
from clipguard.attacks.threat import NORMS
from clipguard.core.eps import Norm


def test_the_schedule_is_the_reference_s() -> None:
    theirs = SquareAttack(lambda x: x, n_queries=5000, resc_schedule=False)
    sides = side_lengths(5000, 32, 32, "linf").tolist()
    assert sides == [max(round((theirs.p_selection(i) * 1024) ** 0.5), 1) for i in range(5000)]
    assert (sides[0], sides[10], sides[11], sides[50], sides[51], sides[4999]) == (29, 29, 20, 20, 14, 3)
    assert all(side % 2 and side >= 3 for side in side_lengths(5000, 32, 32, "l2").tolist())
    assert side_lengths(9, 4, 100, "linf").max() == 4


@pytest.mark.parametrize("side", [1, 2, 3, 7, 20])
def test_the_bump_has_unit_norm_and_two_halves(side: int) -> None:
    pattern = bump(side)
    assert pattern.shape == (side, side)
    assert pattern.norm().item() == pytest.approx(1)
    theirs = SquareAttack(lambda x: x, norm="L2", device="cpu")
    if side > 1:
        assert (pattern[: side // 2] > 0).all()
        assert (pattern[side // 2 :] < 0).all()
        expected = theirs.eta(side)
        assert torch.allclose(pattern, expected) or torch.allclose(pattern.T, expected)


def test_windows_reach_every_pixel_and_stay_inside() -> None:
    x = torch.zeros(500, 3, 7, 9)
    u, sides = uniform(500, 2), torch.arange(500) % 7 + 1
    u[:4] = torch.tensor([[0.0, 0], [0.99999, 0.99999], [0, 0.99999], [0.99999, 0]])
    squares = window(x, u, sides)
    assert squares.shape == (500, 1, 7, 9)
    assert torch.equal(squares.flatten(1).sum(dim=1), sides**2)
    singles = squares[sides == 1].flatten(1).any(dim=0)
    assert singles.float().mean() > 0.5
    assert squares.any(dim=0).all()
    assert squares[1, 0, -1, -1]  # the last row and column, which the reference never touches


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 16), (5, 9, 4), (3, 3, 3)])
def test_any_number_of_channels_and_any_shape(shape: tuple[int, int, int], norm: Norm) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(dim=1, keepdim=True)
            return torch.cat([mean, 0.5 - 0 * mean], dim=1)

    eps = 0.2 if norm == "linf" else 0.8 * float(torch.ones(shape).numel()) ** 0.5 * 0.3
    examples = labelled(Mean().eval(), uniform(4, *shape))
    for outcome in run(Mean().eval(), examples, "square(queries=200)", eps, norm, keep_images=True):
        delta = outcome.eps_outcomes[0].image - examples[outcome.index].image
        assert (delta.abs().max() if norm == "linf" else delta.norm()) <= eps + 1e-5
        assert not outcome.eps_outcomes[0].robust


@pytest.mark.parametrize("norm", NORMS)
def test_candidates_differ_by_one_square_and_only_improvements_are_kept(norm: Norm) -> None:
    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.seen, self.margins = small_conv(), [], []

        def forward(self, x: Tensor) -> Tensor:
            logits = self.model(x)
            self.seen.append(x[0].clone())
            top = logits[0].topk(2).values
            self.margins.append((top[0] - top[1]).item())
            return logits

    model = Recording().eval()
    (example,) = labelled(small_conv(), uniform(1, 3, 12, 12))
    eps = 0.004
    subject = engine(model, "square(queries=60)", eps, norm)
    (outcome,) = subject.run([example])
    assert outcome.eps_outcomes[0].robust
    points, margins = model.seen[1:], model.margins[1:]  # without the clean image
    kept, least = points[0], margins[0]
    improvements = 0
    for x, margin in zip(points[1:], margins[1:], strict=True):
        changed = (x != kept).any(dim=0)
        if norm == "linf":
            rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
            largest = int(side_lengths(60, 12, 12, norm)[0])
            if len(rows):
                assert max(rows.max() - rows.min(), columns.max() - columns.min()) < largest
            assert torch.allclose((x - example.image).abs()[(x > 0) & (x < 1)], torch.tensor(eps), atol=1e-6)
        else:
            assert (x - example.image).norm() <= eps + 1e-6
        if margin < least:
            kept, least, improvements = x, margin, improvements + 1
    assert improvements > 3
    assert outcome.eps_outcomes[0].margin == pytest.approx(least, rel=1e-4)


def test_a_square_run_has_its_own_draws() -> None:
    """Two images with the same pixels and different indices do not get the same squares."""
    model, attack = small_conv(), Square(queries=5)
    assert attack.iterations == 5
    (example,) = labelled(model, uniform(1, 3, 8, 8))
    twins = [example, type(example)(1, example.image, example.label)]
    first, second = run(model, twins, "square(queries=5)", 0.001)
    assert first.eps_outcomes[0].margin != second.eps_outcomes[0].margin
