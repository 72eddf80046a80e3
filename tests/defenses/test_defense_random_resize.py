from __future__ import annotations

import torch
from defended_models import LinearClip, images
from torch.nn import functional as F

from clipguard.defenses.base import View
from clipguard.defenses.classifiers import Undefended, defend
from clipguard.defenses.draws import Draws
from clipguard.defenses.methods.random_resize import RandomResize, _weights

DEFENSE = RandomResize()


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(4))


def test_an_image_is_enlarged_padded_and_resized_back() -> None:
    """At 224 x 112 from 232..247 x 116..123 on a canvas of 248 x 124."""
    x, draws = pictures(6, 224, 112), Draws(seed=1)
    got = DEFENSE.resized(x, draws.rows(x))
    for image, out, (factor, top, left) in zip(x, got, draws.rows(x).uniform(3).tolist(), strict=True):
        height, width = 232 + int(16 * factor), 116 + int(8 * factor)
        larger = F.interpolate(image[None], (height, width), mode="nearest")
        down, right = int(top * (248 - height + 1)), int(left * (124 - width + 1))
        canvas = F.pad(larger, (right, 124 - width - right, down, 248 - height - down), value=0.5)
        wanted = F.interpolate(canvas, (224, 112), mode="bilinear")[0]
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_sizes_and_places_reach_both_ends() -> None:
    """At 299: 310..330 of 331, as published; the weights of a row are zero where the canvas is grey."""
    ends = torch.tensor([0.0, 0.0, 1 - 2**-24, 1 - 2**-24])
    weights = _weights(299, ends, torch.tensor([0.0, 1 - 2**-24, 0.0, 1 - 2**-24]))
    inside = weights.sum(dim=2)  # of each output pixel, how much is image
    assert inside.sum(dim=1).mul(331 / 299).round().tolist() == [310, 310, 330, 330]
    assert [(row[0] > 0.99).item() for row in inside] == [True, False, True, False]
    assert [(row[-1] > 0.99).item() for row in inside] == [False, True, False, True]


def test_half_precision_of_the_search_is_of_the_classifier_alone() -> None:
    x = pictures(2, 20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        got = DEFENSE.resized(x, Draws().rows(x))
    assert torch.equal(got, DEFENSE.resized(x, Draws().rows(x)))


def test_grey_stays_grey() -> None:
    x = torch.full((2, 3, 20, 20), 0.5)
    assert torch.equal(DEFENSE.resized(x, Draws().rows(x)), x)


def test_the_gradient_is_exact_whatever_an_attack_asks_for() -> None:
    model, x = LinearClip(curved=True), images()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))

    def value(y: torch.Tensor) -> torch.Tensor:  # with the draws of x
        return model(DEFENSE.resized(y, View().draws.rows(x)))[:, 0].sum()

    wanted = (value(x + 1e-3 * direction) - value(x - 1e-3 * direction)) / 2e-3
    for backward in ("identity", "unrolled"):
        leaf = x.clone().requires_grad_()
        logits = DEFENSE.logits(Undefended(model), leaf, View(backward=backward))
        slope = (torch.autograd.grad(logits[:, 0].sum(), leaf)[0] * direction).sum()
        torch.testing.assert_close(slope, wanted, rtol=1e-2, atol=1e-3)


def test_embeddings_are_those_of_the_changed_image() -> None:
    model, x = LinearClip(), images()
    changed = DEFENSE.resized(x, View().draws.rows(x))
    got = DEFENSE.embed(Undefended(model), x, View(), normalize=False)
    torch.testing.assert_close(got, model.embed(changed, normalize=False))


def test_a_row_does_not_depend_on_the_others_and_a_number_is_another_draw() -> None:
    x, defended = images(5), defend(LinearClip(), [DEFENSE])
    together = defended.logits(x, View())
    torch.testing.assert_close(defended.logits(x[3:4], View())[0], together[3])
    others = [defended.logits(x, View(Draws(number=number))) for number in range(4)]
    assert not all(torch.equal(other, together) for other in others)
