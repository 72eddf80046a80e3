"""What counts of hits prove, and how copies are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from attack_models import Linear, SmallConv
from scipy.stats import norm
from torch import Tensor, nn

from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.certification.noise import CopyNoise
from clipguard.certification.smoother import STAGE, Counted, Smoother
from clipguard.certification.smoothing import Smoothing, SmoothingTest, fewest_samples
from clipguard.core.errors import AttackError, ClipguardError, NonFiniteError
from clipguard.statistics.intervals import fewest_of_majority, lower_bound

SHAPE = (3, 6, 6)


@pytest.mark.parametrize(
    ("hits", "n", "bound"),
    [
        (90, 100, 0.775330),
        (99, 100, 0.911373),
        (549, 1000, 0.499673),
        (550, 1000, 0.500676),
        (900, 1000, 0.867464),
        (990, 1000, 0.976036),
        (999, 1000, 0.990805),
        (9900, 10000, 0.986531),
        (10, 10, 0.501187),
        (0, 10, 0.0),
    ],
)
def test_the_lower_bound_at_alpha_one_in_a_thousand(hits: int, n: int, bound: float) -> None:
    assert lower_bound(hits, n, 0.001) == pytest.approx(bound, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "alpha", "fewest"),
    [(100, 0.001, 66), (1000, 0.001, 550), (10000, 0.001, 5156), (10, 0.001, 10), (9, 0.001, 10), (5, 0.05, 5)],
)
def test_the_fewest_hits_of_a_majority_are_those_whose_bound_is_above_a_half(n: int, alpha: float, fewest: int) -> None:
    assert fewest_of_majority(n, alpha) == fewest
    assert lower_bound(fewest - 1, n, alpha) <= 0.5
    assert fewest > n or lower_bound(fewest, n, alpha) > 0.5


def test_a_bound_of_no_proportion_is_refused() -> None:
    with pytest.raises(ValueError, match="11 of 10"):
        lower_bound(11, 10, 0.05)


@pytest.mark.parametrize(("alpha", "needed"), [(0.001, 10), (0.01, 7), (0.05, 5), (0.5, 2), (0.25, 3)])
def test_the_fewest_samples_that_certify_anything(alpha: float, needed: int) -> None:
    assert fewest_samples(alpha) == needed
    assert fewest_of_majority(needed, alpha) == needed
    assert fewest_of_majority(needed - 1, alpha) == needed


@pytest.mark.parametrize(
    ("hits", "samples", "radius"),
    [(90, 100, 0.7565), (99, 100, 1.3493), (550, 1000, 0.0017), (990, 1000, 1.9780), (100, 100, 1.5005)],
)
def test_the_radius_is_sigma_times_the_normal_quantile(hits: int, samples: int, radius: float) -> None:
    assert SmoothingTest(1.0, samples, 10, 0.001).radius(hits) == pytest.approx(radius, abs=2e-4)
    assert SmoothingTest(0.25, samples, 10, 0.001).radius(hits) == pytest.approx(radius / 4, abs=1e-4)


def test_below_a_majority_the_test_abstains() -> None:
    test = SmoothingTest(0.5, 1000, 100, 0.001)
    assert (test.fewest_hits, test.hopeless_misses) == (550, 451)
    assert not test.certifies(549)
    assert (test.radius(549), test.lower_bound(549), test.samples_used(549)) == (0.0, 0.0, 1000)
    assert (test.samples_used(0), test.samples_used(550)) == (451, 1000)
    assert test.largest_radius == pytest.approx(0.5 * 2.463, abs=1e-3)


def test_samples_that_are_too_few_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(ClipguardError, match=r"`samples=9` can certify nothing .* at least 10 are needed"):
        Smoothing(samples=9).check()
    Smoothing(samples=10).check()
    assert Smoothing().alpha == 0.001
    assert Smoothing(confidence=0.9999999999999).alpha > 0


def count(
    model: nn.Module,
    images: Tensor,
    test: SmoothingTest,
    *,
    batch_size: int = 64,
    order: Sequence[int] = (),
    seed: int = 0,
) -> tuple[dict[int, Counted], int]:
    """Outcomes by index, and the noisy copies that were passed."""
    evaluator = Evaluator(model.eval(), batch_size)
    indices = list(order) or list(range(len(images)))
    examples = (Example(i, images[i], 0) for i in indices)
    outcomes = {counted.example.index: counted for counted in Smoother(evaluator, test, seed).run(examples)}
    return outcomes, evaluator.costs[STAGE].forward


def told(outcomes: dict[int, Counted]) -> dict[int, tuple[int, int, int]]:
    return {i: (counted.base, counted.selected, counted.hits) for i, counted in sorted(outcomes.items())}


def linear(n: int, farthest: float = 0.6) -> tuple[Linear, Tensor, Tensor]:
    """A two-class model, images on both sides of its plane, and their l2 distances to it (n,)."""
    w = torch.randn(108, generator=torch.Generator().manual_seed(1))
    w /= w.norm()
    signed = torch.linspace(-farthest, farthest, n)
    model = Linear(torch.stack([w, -w]), 0.5 * torch.stack([-w.sum(), w.sum()]))
    return model, (0.5 + signed[:, None] * w).view(n, *SHAPE), signed.abs()


def test_the_radius_of_a_linear_model_stays_below_its_distance_and_tends_to_it() -> None:
    model, images, distances = linear(24)
    gaps = []
    for samples in (100, 10_000):
        test = SmoothingTest(0.25, samples, 100, 0.001)
        outcomes, _ = count(model, images, test, batch_size=2048)
        radii = torch.tensor([test.radius(outcomes[i].hits) for i in range(24)])
        assert (radii <= distances + 1e-6).all()  # each with a chance of one in a thousand
        certified = torch.tensor([test.certifies(outcomes[i].hits) for i in range(24)])
        right = [outcomes[i].selected == outcomes[i].base for i in range(24) if certified[i]]
        assert all(right)
        within = distances < 0.3  # what 100 samples can prove is limited to 1.5 sigma
        gaps.append(float((distances - radii)[within].mean()))
    assert gaps[1] < 0.015 < 0.05 < gaps[0]


def test_hits_of_a_linear_model_have_the_probability_of_the_closed_form() -> None:
    model, images, distances = linear(5)
    for sigma in (0.1, 0.5):
        test = SmoothingTest(sigma, 4000, 50, 0.001)
        outcomes, _ = count(model, images, test, batch_size=1000)
        for i in range(5):
            p = float(norm.cdf(distances[i] / sigma))
            hits = outcomes[i].hits / test.samples_used(outcomes[i].hits)
            if p > 0.6:  # nearer to the plane the copies may select the other class, and counting ends early
                assert hits == pytest.approx(p, abs=4.5 * (p * (1 - p) / 4000) ** 0.5 + 1e-9)


def test_an_image_on_the_plane_is_abstained_on() -> None:
    model, images, _ = linear(1, farthest=0)
    test = SmoothingTest(0.25, 500, 50, 0.001)
    outcomes, passed = count(model, images, test)
    assert not test.certifies(outcomes[0].hits)
    assert test.radius(outcomes[0].hits) == 0
    assert passed <= 550


def by_hand(model: nn.Module, image: Tensor, index: int, test: SmoothingTest, seed: int = 0) -> tuple[int, int, int]:
    """The selected class, all hits without an early end, and hits until the misses that decide."""
    noise = CopyNoise(seed, index, test.sigma, torch.device("cpu")).normal(test.selection + test.samples, SHAPE)
    with torch.no_grad():
        classes = model(image + test.sigma * noise).argmax(dim=1).numpy()
    selected = int(np.bincount(classes[: test.selection]).argmax())
    hit = classes[test.selection :] == selected
    hits = misses = 0
    for one in hit:
        hits, misses = hits + int(one), misses + int(not one)
        if misses == test.hopeless_misses:
            break
    return selected, int(hit.sum()), hits


def conv_images(n: int) -> tuple[SmallConv, Tensor]:
    return SmallConv().eval(), torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3))


def test_the_early_end_changes_no_answer_and_saves_passes() -> None:
    model, images = conv_images(10)
    test = SmoothingTest(0.4, 200, 20, 0.001)
    outcomes, passed = count(model, images, test, batch_size=16)
    abstained = 0
    for i in range(10):
        selected, all_hits, until = by_hand(model, images[i], i, test)
        assert outcomes[i].selected == selected
        assert test.certifies(outcomes[i].hits) == test.certifies(all_hits)
        assert outcomes[i].hits == (all_hits if test.certifies(all_hits) else until)
        abstained += not test.certifies(all_hits)
    assert 0 < abstained < 10
    assert passed < 10 * 220


def test_outcomes_depend_on_no_batch_and_no_order() -> None:
    model, images = conv_images(7)
    test = SmoothingTest(0.3, 60, 11, 0.01)
    known = told(count(model, images, test)[0])
    for batch_size in (1, 5, 71, 1000):
        assert told(count(model, images, test, batch_size=batch_size)[0]) == known
    assert told(count(model, images, test, batch_size=13, order=[4, 0, 6, 2, 1, 5, 3])[0]) == known
    alone = {i: told(count(model, images, test, order=[i])[0])[i] for i in range(7)}
    assert alone == known
    assert told(count(model, images, test, seed=1)[0]) != known


def test_noise_is_of_image_seed_and_sigma() -> None:
    def draw(*of: float) -> Tensor:
        seed, image, sigma = of
        return CopyNoise(int(seed), int(image), sigma, torch.device("cpu")).normal(3, SHAPE)

    one = CopyNoise(0, 5, 0.25, torch.device("cpu"))
    parts = torch.cat([one.normal(1, SHAPE), one.normal(2, SHAPE)])
    assert torch.equal(parts, draw(0, 5, 0.25))
    for other in (draw(1, 5, 0.25), draw(0, 6, 0.25), draw(0, 5, 0.5)):
        assert not torch.isclose(parts, other).any()
    many = CopyNoise(0, 0, 0.25, torch.device("cpu")).normal(300, SHAPE)
    assert float(many.mean()) == pytest.approx(0, abs=0.03)
    assert float(many.std()) == pytest.approx(1, abs=0.03)


def test_images_of_several_sizes_are_certified_each_at_its_own() -> None:
    model, images = conv_images(4)
    small = [images[0], images[1][:, :5], images[2], images[3][:, :5]]
    test = SmoothingTest(0.3, 40, 11, 0.01)

    def examples() -> Iterator[Example]:
        yield from (Example(i, image, 0) for i, image in enumerate(small))

    outcomes = {c.example.index: c for c in Smoother(Evaluator(model, 16), test, 0).run(examples())}
    assert sorted(outcomes) == [0, 1, 2, 3]
    assert told(outcomes)[2] == told(count(model, images, test)[0])[2]


def test_what_no_number_comes_of_is_refused() -> None:
    class Broken(SmallConv):
        def forward(self, x: Tensor) -> Tensor:
            inside = (x >= 0) & (x <= 1)
            return super().forward(x) / inside.all().float()  # fails on noise alone

    _, images = conv_images(2)
    test = SmoothingTest(2.0, 40, 11, 0.01)
    with pytest.raises(NonFiniteError, match="on a noisy copy of an image \\(image 0\\)"):
        count(Broken().eval(), images, test)
    with pytest.raises(AttackError, match=r"must lie in \[0,1\] \(image 1\)"):
        count(SmallConv().eval(), images + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), test)
