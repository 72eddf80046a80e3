from __future__ import annotations

from collections.abc import Callable

import torch
from defended_models import LinearClip, images
from torch import Tensor

from clipguard.defenses.base import View
from clipguard.defenses.copies import ROWS, outputs_of_copies


def bare(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor, View], Tensor]:
    return lambda x, _: model(x)


def darker(x: Tensor, number: int) -> Tensor:
    return x / (1 + number)


def test_outputs_are_those_of_each_copy_in_order() -> None:
    model, x = LinearClip(), images(3)
    outputs = list(outputs_of_copies(bare(model), x, View(), 50, darker, least_rows=1))
    assert len(outputs) == 50
    for number in (0, 20, 21, 49):
        torch.testing.assert_close(outputs[number], model(x / (1 + number)))


def test_passes_hold_at_most_so_many_rows_and_at_least_the_least() -> None:
    model, sizes = LinearClip(), []

    def run(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return model(rows)

    for n, count, least in ((1, 100, 1), (5, 13, 16), (3, 22, 16), (ROWS + 1, 2, 16)):
        list(outputs_of_copies(bare(run), images(n), View(), count, darker, least_rows=least))
    assert sizes == [64, 36, 60, 16, 63, 16, 65, 65]


def test_the_gradient_is_that_of_all_copies_at_once_and_holds_one_pass_in_memory() -> None:
    model, x = LinearClip(curved=True), images(3).requires_grad_()
    wanted = torch.autograd.grad(sum(model(darker(x, n))[:, 1].sum() for n in range(70)), x)[0]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        total = sum(outputs_of_copies(bare(model), x, View(), 70, darker, least_rows=1))
    assert sum(saved) < x.numel() * 10  # nothing of the 70 copies but the images themselves, once a pass
    torch.testing.assert_close(torch.autograd.grad(total[:, 1].sum(), x)[0], wanted)
