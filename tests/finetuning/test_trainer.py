"""The loop: what a step computes, what it leaves alone, and when it stops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from training_runs import make_config, make_trainer, write_vit

from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Silent
from clipguard.finetuning.data.batches import ImageBatch, load_batches
from clipguard.finetuning.methods.base import Batch, Method, Need
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.registry import METHODS
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.training.optimizers import lr_factor
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.tuned.lora import LowRank, merge_changes
from clipguard.models import load_model

State = dict[str, Tensor]


def trained(model: str, dataset: str, out: Path, **settings: Any) -> State:
    """The model's state after a run."""
    trainer = make_trainer(make_config(model, dataset, **settings), out)
    trainer.train(Silent(), 0)
    return state(trainer)


def state(trainer: Trainer) -> State:
    return {name: value.clone() for name, value in trainer.trained_model().state_dict().items()}


def largest_difference(one: State, other: State) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    "method", ["tecoa", "fare", "trades", "pmg-aft", "tima", "tima(text=encoder)", "sim-clip", "clean"]
)
def test_two_passes_of_two_are_one_of_four(method: str, vit: str, images: str, tmp_path: Path) -> None:
    """Also for terms that do not depend on the batch, such as TIMA's energy; SGD, since Adam magnifies rounding."""
    settings = {"method": method, "optimizer": "sgd", "lr": 0.01, "steps": 3}
    trainer = make_trainer(make_config(vit, images, **settings), tmp_path / "a")
    start = state(trainer)
    trainer.train(Silent(), 0)
    whole = state(trainer)
    halves = trained(vit, images, tmp_path / "b", batch_size=2, accumulate=2, **settings)
    assert largest_difference(whole, start) > 1e-4  # it did train
    assert largest_difference(whole, halves) < 5e-6  # rounding; what is trained moves by more than 1e-4


def test_the_attack_leaves_no_gradient_and_trains_nothing(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, method="tima"), tmp_path)
    batch = next(iter_batches(trainer))
    model, objective = trainer.model, trainer.objective
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    seen = Batch(model(), model.original_text(), 100.0, batch.labels)
    objective.perturb(model, batch.pixels, batch.keys, seen)
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == before
    terms = objective(model, batch, 0.0, forward=trainer.model)
    sum(terms.losses.values()).backward()  # type: ignore[union-attr]
    trained_parameters = {id(p) for p in [*model.image_parameters(), *model.text_parameters()]}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained_parameters)
    assert objective.original is not None
    assert all(p.grad is None and not p.requires_grad for p in objective.original.parameters())


def iter_batches(trainer: Trainer) -> Iterator[ImageBatch]:
    return (batch.to(torch.device("cpu")) for batch in load_batches(trainer.images, trainer.sampler, 0))


def test_the_gradient_is_that_of_the_terms_alone(vit: str, images: str, tmp_path: Path) -> None:
    """After a real step's forward, attack and backward, against autograd on the same adversarial images."""
    trainer = make_trainer(make_config(vit, images), tmp_path)
    batch = next(iter_batches(trainer))
    model, objective = trainer.model, trainer.objective
    losses, seen, *_ = objective(model, batch, 0.0, forward=trainer.model)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    gradients = [p.grad.clone() for p in model.image_parameters() if p.grad is not None]
    x_adv, _ = objective.perturb(model, batch.pixels, batch.keys, seen)
    logits = objective.logit_scale * nn.functional.normalize(model.image(x_adv)) @ seen.text.T
    loss = nn.functional.cross_entropy(logits, batch.labels)
    expected = torch.autograd.grad(loss, model.image_parameters())
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients, expected, strict=True))


def test_batch_norm_keeps_its_statistics_and_the_rest_trains(images: str, tmp_path: Path) -> None:
    model = write_vit(tmp_path / "rn", layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    trainer = make_trainer(make_config(model, images), tmp_path / "out")
    trainer.model.train()
    tower = trainer.model.image
    norms = [m for m in tower.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms if m.running_mean is not None]
    trainer.objective(trainer.model, next(iter_batches(trainer)), 0.0, forward=trainer.model)
    assert tower.training
    assert tower.visual.training  # dropout and its like, after the attack's eval mode, too
    assert norms
    assert not any(m.training for m in norms)
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))


@dataclass(frozen=True)
class Exploding(TeCoA):
    """Its second term becomes infinite at the third step."""

    name: ClassVar[str] = "exploding"

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        terms = super().terms(batch, progress)
        return {**terms, "wild": terms["ce"] * (math.inf if progress >= 0.5 else 0.0)}


def test_nan_stops_at_its_step_names_the_term_and_leaves_the_last_checkpoint(
    vit: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "exploding", Exploding)
    trainer = make_trainer(make_config(vit, images, method="exploding", save_every=1), tmp_path)
    with pytest.raises(FinetuneError, match=r"Step 3: wild is inf .*ce"):
        trainer.train(Silent(), 0)
    state = trainer.checkpoints.latest()
    assert state is not None
    assert state["position"]["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["student"].values())
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@dataclass(frozen=True)
class Blind(TeCoA):
    """Its attack objective is NaN."""

    name: ClassVar[str] = "blind"

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        return super().attack_objective(adversarial, batch) * math.nan


def test_nan_in_the_attack_is_named(vit: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "blind", Blind)
    trainer = make_trainer(make_config(vit, images, method="blind"), tmp_path)
    with pytest.raises(FinetuneError, match="Step 1: attack is nan"):
        trainer.train(Silent(), 0)


def test_the_moving_average_is_that_of_the_weights(vit: str, images: str, tmp_path: Path) -> None:
    """After steps 1 and 2: w1, then d w1 + (1 - d) w2."""
    first = trained(vit, images, tmp_path / "b", steps=1, schedule="constant", warmup_steps=0)
    second = trained(vit, images, tmp_path / "c", steps=2, schedule="constant", warmup_steps=0)
    average = trained(vit, images, tmp_path / "d", steps=2, schedule="constant", warmup_steps=0, ema=0.75)
    expected = {name: 0.75 * first[name] + 0.25 * second[name] for name in first}
    assert largest_difference(average, expected) < 1e-6
    assert largest_difference(average, second) > 1e-4


@pytest.mark.parametrize(("train", "tuned"), [("last-1", {"proj"}), ("last-2", {"proj", "ln_post", "resblocks.1"})])
def test_last_layers_only(train: str, tuned: set[str], vit: str, images: str, tmp_path: Path) -> None:
    after = trained(vit, images, tmp_path, train=train)
    before = load_model(vit).model.state_dict()
    changed = {n for n, value in after.items() if not torch.equal(value, before[n.removeprefix("image.")])}
    assert changed
    assert all(any(f".{part}" in name for part in tuned) for name in changed)
    assert all(any(f".{part}" in name for name in changed) for part in tuned)


def test_train_all_tunes_the_text_tower(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, train="all"), tmp_path)
    assert len(trainer.model.text_parameters()) > 5
    with pytest.raises(FinetuneError, match="text=head"):
        make_trainer(make_config(vit, images, method="tima", train="all"), tmp_path)


def test_low_rank_changes_merge_exactly(vit: str, images: str, tmp_path: Path) -> None:
    """In fused attention, too: the merged tower computes what was trained, bit by bit, with plain weights."""
    trainer = make_trainer(make_config(vit, images, lora=2, lr=0.01), tmp_path)
    names = set(load_model(vit).model.visual.state_dict())  # type: ignore[union-attr]
    trainable = [m for m in trainer.model.modules() if isinstance(m, LowRank)]
    assert sum(p.numel() for m in trainable for p in m.parameters()) == sum(
        p.numel() for p in trainer.model.image_parameters()
    )
    assert len(trainable) == 9  # the patches, and in each of two blocks attention in and out and two linear layers
    trainer.train(Silent(), 0)
    visual = trainer.model.image.visual.eval()
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        before = visual(x)
        merge_changes(visual)
        assert torch.equal(visual(x), before)
        assert set(visual.state_dict()) == names
        original = load_model(vit).model.visual
        assert not torch.allclose(original(x), before)  # type: ignore[operator]


def test_the_learning_rate_warms_up_from_its_first_step_and_ends_low() -> None:
    factors = [lr_factor(step, 100, 10, "cosine") for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001
    assert lr_factor(50, 100, 0, "constant") == 1


@dataclass(frozen=True)
class Counting(Method):
    """Needs clean embeddings only, and counts."""

    name: ClassVar[str] = "counting"
    summary: ClassVar[str] = "for a test"

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        return frozenset({"clean"})

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        assert batch.adversarial is batch.original_clean is batch.original_adversarial is None
        assert batch.clean is not None
        return {"size": batch.clean.square().mean()}


def test_only_what_a_method_needs_is_computed(
    vit: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "counting", Counting)
    trainer = make_trainer(make_config(vit, images, method="counting"), tmp_path)
    calls: list[int] = []
    trainer.model.image.register_forward_hook(lambda *_: calls.append(1))
    trainer.train(Silent(), 0)
    assert trainer.objective.original is None
    assert len(calls) == trainer.steps
