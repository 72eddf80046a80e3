"""AWP: the gradient at weights that are perturbed where the loss rises, each matrix by its own size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import host_waits
from tiny_models import write_model
from torch import Tensor, nn
from training_runs import StopsAfter, make_config, make_trainer

from clipguard.cli import run
from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Silent
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch, load_batches
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.tuned.weight_perturbation import perturbed, perturbed_weights
from clipguard.models import load_model
from clipguard.models.export import WEIGHTS_NAME

EXACT: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "warmup_steps": 0}
SMOOTH: dict[str, Any] = {"norm": "l2", "eps": "1", "attack_steps": 1, "schedule": "constant"}


def state(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("gamma", [1e-4, 5e-3, 0.5])
def test_each_tensor_moves_by_gamma_of_its_size_along_the_gradient_and_comes_back(gamma: float) -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(scale * torch.randn(7, 5)) for scale in (1e-3, 1.0, 100.0)]
    still = [nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.zeros(2, 2))]
    for weight in weights:
        weight.grad = 1e-6 * torch.randn(7, 5)
    still[0].grad, still[2].grad = torch.zeros(2, 2), torch.ones(2, 2)  # no direction, no gradient, no size
    before = [weight.detach().clone() for weight in [*weights, *still]]
    with perturbed([*weights, *still], gamma):
        for weight, old in zip(weights, before, strict=False):
            change = weight.detach() - old
            assert float(change.norm() / old.norm()) == pytest.approx(gamma, rel=1e-3)
            assert weight.grad is not None
            cosine = torch.cosine_similarity(change.flatten(), weight.grad.flatten(), dim=0)
            assert float(cosine) == pytest.approx(1, abs=1e-3)
        assert all(torch.equal(w, old) for w, old in zip(still, before[3:], strict=True))
    assert all(torch.equal(w, old) for w, old in zip([*weights, *still], before, strict=True))


def test_for_a_linear_loss_it_is_the_published_one() -> None:
    """A copy takes a step of SGD up the loss; its difference is scaled to the weight: utils_awp.py, line by line."""
    torch.manual_seed(1)
    weight, direction, gamma = nn.Parameter(torch.randn(4, 3)), torch.randn(4, 3), 0.01
    proxy = nn.Parameter(weight.detach().clone())
    (-(proxy * direction).sum()).backward()
    torch.optim.SGD([proxy], lr=0.01).step()
    difference = proxy.detach() - weight.detach()
    expected = weight.detach() + gamma * weight.detach().norm() / (difference.norm() + 1e-20) * difference
    (weight * direction).sum().backward()
    with perturbed([weight], gamma):
        torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize(
    ("family", "some", "none"),
    [
        ("vit", {"in_proj_weight", "proj", "out_proj.weight", "conv1.weight", "c_fc.weight"}, {"embedding", "bias"}),
        ("timm", {"fc1.weight", "proj.weight"}, {"bias", "gamma"}),
        ("resnet", {"conv1.weight"}, {"bias", "bn1.weight", "positional_embedding"}),
    ],
)
def test_matrices_and_no_embeddings(family: str, some: set[str], none: set[str], tmp_path: Path) -> None:
    visual = load_model(f"local-dir:{write_model(tmp_path / family, family)}").model.visual
    assert isinstance(visual, nn.Module)
    visual.requires_grad_(True)
    chosen = {id(parameter) for parameter in perturbed_weights(visual)}
    names = [name for name, parameter in visual.named_parameters() if id(parameter) in chosen]
    assert all(any(name.endswith(part) for name in names) for part in some)
    assert not [name for name in names for part in none if part in name]
    others = [(name, p) for name, p in visual.named_parameters() if id(p) not in chosen and p.ndim > 1]
    assert all("embed" in name or "token" in name or "latent" in name for name, _ in others)


def test_tokens_are_no_matrix_and_what_is_not_trained_stays(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, train="all"), tmp_path / "all")
    chosen = {id(parameter) for parameter in perturbed_weights(trainer.model)}
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in chosen}
    assert any("text_projection" in name for name in names)
    assert not [name for name in names if "embedding" in name]
    trainer = make_trainer(make_config(vit, images, train="last-1"), tmp_path / "last")
    assert [tuple(p.shape) for p in perturbed_weights(trainer.model)] == [(32, 16)]  # the projection
    trainer = make_trainer(make_config(vit, images, train="svd"), tmp_path / "svd")
    assert len(perturbed_weights(trainer.model)) == 8


@pytest.mark.parametrize("method", ["tecoa", "trades", "clean", "tima(text=encoder)"])
def test_a_step_is_that_of_the_gradient_at_perturbed_weights(
    method: str, vit: str, images: str, tmp_path: Path
) -> None:
    """By hand: attack and gradient; weights moved; gradient there, on the same images; weights back; SGD."""
    trainer = make_trainer(make_config(vit, images, method, awp=0.1, steps=1, **EXACT, **SMOOTH), tmp_path)
    model, objective = trainer.model.train(), trainer.objective
    batch = next(load_batches(trainer.images, trainer.sampler, 0)).to(torch.device("cpu"))
    start = state(trainer)

    def gradient(images: ImageBatch) -> ImageBatch:
        model.zero_grad()
        terms = objective(model, images, 0.0, model)
        torch.stack(list(terms.losses.values())).sum().backward()
        return terms.images

    attacked = gradient(batch)
    assert (attacked.adversarial is None) == (method == "clean")
    moves = {
        id(p): 0.1 * p.detach().norm() * p.grad / p.grad.norm() for p in perturbed_weights(model) if p.grad is not None
    }
    with torch.no_grad():
        for p in model.parameters():
            p += moves.get(id(p), 0)
    gradient(attacked)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.load_state_dict(start)
    model.zero_grad()
    trainer.train(Silent(), 0)
    for name, p in model.named_parameters():
        if name.startswith("image.") and name in gradients:  # the text has an Adam of its own
            torch.testing.assert_close(p.detach(), start[name] - 0.1 * gradients[name], atol=1e-6, rtol=1e-5)
    assert len(moves) > 5
    (row,) = read_metrics(tmp_path)
    assert ("attack" in row) == (method != "clean")


@pytest.mark.parametrize("parts", [{"batch_size": 4, "effective_batch": 6}, {"batch_size": 3, "accumulate": 2}])
def test_a_step_in_parts_is_the_step(parts: dict[str, int], vit: str, images: str, tmp_path: Path) -> None:
    """The direction is that of all images of the step, however they are divided."""
    given = {**EXACT, **SMOOTH, "steps": 2, "awp": 0.05, "augment": "none"}
    states = []
    for name, sizes in (("whole", {"batch_size": 6}), ("parts", parts), ("plain", {**parts, "awp": 0.0})):
        trainer = make_trainer(make_config(vit, images, **{**given, **sizes}), tmp_path / name)
        trainer.train(Silent(), 0)
        states.append(state(trainer))
    assert largest_difference(states[0], states[1]) < 5e-6
    assert largest_difference(states[0], states[2]) > 1e-4


def test_it_begins_after_its_warm_up_and_waits_for_no_number(vit: str, images: str, tmp_path: Path) -> None:
    weights = {}
    for name, given in (("plain", {}), ("late", {"awp": 0.05, "awp_warmup": 2}), ("at once", {"awp": 0.05})):
        trainer = make_trainer(make_config(vit, images, batch_size=2, effective_batch=4, **given), tmp_path / name)
        batches, weights[name] = load_batches(trainer.images, trainer.sampler, 0), []
        trainer.model.train()
        for _ in range(3):
            with host_waits() as found:
                trainer._step(batches)
            assert found == []
            weights[name].append(state(trainer))
    same = [largest_difference(one, other) == 0 for one, other in zip(weights["plain"], weights["late"], strict=True)]
    assert same == [True, True, False]
    assert largest_difference(weights["plain"][0], weights["at once"][0]) > 0


def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(vit: str, images: str, tmp_path: Path) -> None:
    given = {"evaluation": False, "val_fraction": 0.0, "save_every": 1, "awp": 0.01, "awp_warmup": 1}
    config = make_config(vit, images, **given)
    run_finetune(config, tmp_path / "whole", "")
    with pytest.raises(KeyboardInterrupt):
        run_finetune(config, tmp_path / "stopped", "", StopsAfter(24 + 3))  # 24 images are read
    resume_finetune(tmp_path / "stopped")
    whole, stopped = ((tmp_path / n / WEIGHTS_NAME).read_bytes() for n in ("whole", "stopped"))
    assert whole == stopped
    recorded = json.loads((tmp_path / "whole" / "run.json").read_text())["config"]
    assert (recorded["awp"], recorded["awp_warmup"]) == (0.01, 1)
    plain = make_config(vit, images).to_dict()
    assert not {"awp", "awp_warmup", "noise"} & plain.keys()
    assert FinetuneConfig.from_dict(plain).awp == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--awp", "-1"], "--awp must be a number of at least 0 and at most 1, not -1"),
        (["--awp", "0.01", "--lora", "2"], "--lora"),
        (["--awp", "0.01", "--fsdp", "--workers", "2"], "--fsdp"),
    ],
)
def test_what_cannot_be_perturbed_is_refused(options: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "finetune", *options]) == 2
    assert said in capfd.readouterr().err
    with pytest.raises(
        FinetuneError, match=r"^`awp` perturbs matrices, each by its own size, but .*: leave one out\.$"
    ):
        make_config("tiny", "emoji-food", awp=0.01, lora=2)
