"""The self-test of batches: the cheapest way to fill passes with which a row does not depend on the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import write_model
from torch import Tensor, nn

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions, Fill
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.batch_invariance import Filling, find_fill
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.data import load_dataset
from clipguard.models import load_model

BATCH = 32


class Kernels(nn.Module):
    """A linear model on (1, 2, 2) images that rounds as the kernels of some library may.

    `kind` "tail": rows beyond the last multiple of 4 differ; "shape": the number of rows counts; "place": the row's
    place in the batch does; "few": fewer than 8 rows do; "least": fewer than 16. `amount` is by how much the first
    logit differs.
    """

    least_rows = 16

    def __init__(self, kind: str, amount: float = 1e-6) -> None:
        super().__init__()
        self.kind, self.amount = kind, amount

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        place = torch.arange(n)
        difference = {
            "none": torch.zeros(n),
            "tail": (place >= n // 4 * 4).float(),
            "shape": torch.full((n,), float(n)),
            "place": place % 7.0,
            "few": torch.full((n,), float(n < 8)),
            "least": torch.full((n,), float(n < 16)),
        }[self.kind]
        logits = x.flatten(1)[:, :2]
        return logits + self.amount * torch.stack([difference, torch.zeros(n)], dim=1)


@pytest.mark.parametrize(
    ("kind", "filling"),
    [
        ("none", Filling("least", True, 4)),
        ("few", Filling("least", True, 8)),
        ("least", Filling("least", True)),
        ("tail", Filling("multiple", True, 4)),
        ("shape", Filling("full", True)),
        ("place", Filling("alone", False)),
    ],
)
@pytest.mark.parametrize("batch_size", [BATCH, 33])
def test_the_cheapest_fill_that_holds_is_found(kind: str, filling: Filling, batch_size: int) -> None:
    assert find_fill(Kernels(kind).eval(), (1, 2, 2), batch_size) == filling
    assert find_fill(Kernels(kind).eval(), (1, 2, 2), batch_size, gradients=False) == filling


def test_a_compiled_search_promises_nothing_but_decides_as_ever() -> None:
    assert find_fill(Kernels("tail").eval(), (1, 2, 2), BATCH, compiled=True) == Filling("multiple", False, 4)


def test_where_no_fill_holds_an_image_decides_alone() -> None:
    """An image at the edge is taken for one class or the other by its place in the batch, unless it passes alone."""
    edge = torch.tensor([0.5, 0.5 + 2e-3, 0.0, 0.0]).view(1, 2, 2)
    other = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 2, 2)
    model = Kernels("place", amount=1e-3).eval()

    def prediction(place: int, fill: Fill) -> int:
        examples = [Example(i, edge if i == place else other, 1 if i == place else 0) for i in range(8)]
        options = EngineOptions(batch_size=8, fill=fill)
        engine = Engine(model, parse_recipe("none"), ThreatModel("linf"), [], options)
        return next(o.clean_prediction for o in engine.run(examples) if o.index == place)

    assert {prediction(place, "least") for place in range(8)} == {0, 1}
    assert {prediction(place, "alone") for place in range(8)} == {1}


@pytest.mark.parametrize("name", ["tiny", "vit"])
def test_a_real_model_holds_with_what_is_found_here(name: str, tmp_path: Path) -> None:
    """Bytes where the self-test says that they hold, in batches and at places that it did not try."""
    data = load_dataset("emoji-food")
    model = load_model(name if name == "tiny" else f"local-dir:{write_model(tmp_path, name)}")
    classifier, preprocess = model.classifier(data.class_names, data.templates), model.preprocess()
    x = torch.stack([preprocess(data.image(i)) for i in range(64)])
    filling = find_fill(classifier, tuple(x.shape[1:]), 64)
    evaluator = Evaluator(classifier, 64, fill=filling.fill, small_rows=filling.small_rows)

    def look(rows: Tensor) -> tuple[Tensor, ...]:
        logits, loss, gradient = evaluator.gradient(rows, lambda z, _start, _stop: z.logsumexp(dim=1) - z[:, 0])
        return evaluator.verify(rows), logits, loss, gradient

    whole = look(x)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    for n in (*range(1, 18), 22, 33, 47, 64):
        for rows in (order[:n], torch.arange(n), torch.arange(64 - n, 64)):
            buffer = torch.empty(x[rows].numel() + n)  # and at an odd offset in memory
            view = buffer[n:].view_as(x[rows]).copy_(x[rows])
            for part, all_of_them in zip(look(view), whole, strict=True):
                if filling.holds:
                    assert torch.equal(part, all_of_them[rows]), n
                else:
                    torch.testing.assert_close(part, all_of_them[rows], rtol=1e-3, atol=1e-4)
