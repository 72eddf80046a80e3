"""CLIP-SVD: singular values alone are trained, from the model as it came, and merged into plain weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from process_runs import train_all
from test_processes import assert_same_curves, runs
from tiny_models import write_model
from torch import Tensor, nn
from training_runs import StopsAfter, make_config, make_trainer, write_vit

from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Silent
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.tuned.lora import merge_changes
from clipguard.finetuning.tuned.singular_values import SingularValues, train_singular_values
from clipguard.models import load_model
from clipguard.models.export import WEIGHTS_NAME


def svd_trainer(model: str, dataset: str, out: Path, **settings: object) -> Trainer:
    return make_trainer(make_config(model, dataset, train="svd", lr=0.05, **settings), out)


def original_tower(model: str) -> nn.Module:
    tower = load_model(model).model.visual
    assert isinstance(tower, nn.Module)
    return tower.eval()


@pytest.mark.parametrize("family", ["vit", "resnet", "timm", "coca"])
def test_the_start_is_the_model_bit_by_bit(family: str, tmp_path: Path) -> None:
    name = f"local-dir:{write_model(tmp_path / family, family)}"
    plain, changed = original_tower(name), original_tower(name)
    x = torch.rand(2, 3, 32, 32)
    train_singular_values(changed)
    with torch.no_grad():
        before, after = plain(x), changed(x)
    for one, other in zip(*([out] if isinstance(out, Tensor) else out for out in (before, after)), strict=True):
        assert torch.equal(one, other)
    found = [m for m in changed.modules() if isinstance(m, SingularValues)]
    assert found
    for m in found:  # the decomposition is one: U diag(S0) V' is the weight, U and V have orthonormal vectors
        identity = torch.eye(m.first.shape[1])
        torch.testing.assert_close(m.left.mT @ m.left, identity.expand(len(m.first), -1, -1), atol=1e-5, rtol=0)
        torch.testing.assert_close(m.right @ m.right.mT, identity.expand(len(m.first), -1, -1), atol=1e-5, rtol=0)
    assert {name.rpartition(".")[2] for name, p in changed.named_parameters() if p.requires_grad} == {"values"}


def test_queries_keys_and_values_have_values_of_their_own() -> None:
    """A factor on one matrix's singular values is a factor on that matrix; a negative one turns its sign."""
    attention = nn.MultiheadAttention(8, 2)
    weight = attention.in_proj_weight.detach().clone()
    train_singular_values(attention)
    (change,) = [m for m in attention.parametrizations.in_proj_weight if isinstance(m, SingularValues)]  # type: ignore[union-attr]
    assert change.values.shape == (3, 8)
    with torch.no_grad():
        change.values *= torch.tensor([[1.0], [2.0], [-1.0]])
    factors = torch.tensor([1.0, 2.0, -1.0]).repeat_interleave(8).unsqueeze(1)
    torch.testing.assert_close(attention.in_proj_weight, factors * weight, atol=1e-6, rtol=1e-5)


def test_only_singular_values_change_and_they_merge_exactly(vit: str, images: str, tmp_path: Path) -> None:
    trainer = svd_trainer(vit, images, tmp_path, weight_decay=0.0)
    names = set(original_tower(vit).state_dict())
    found = {n: m for n, m in trainer.model.image.visual.named_modules() if isinstance(m, SingularValues)}
    assert len(found) == 8  # in each of two blocks attention in and out and two linear layers; not patches and `proj`
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train(Silent(), 0)
    changed = {n for n, value in trainer.model.state_dict().items() if not torch.equal(value, start[n])}
    assert {name.rpartition(".")[2] for name in changed} == {"values"}
    assert len(changed) == len(found)
    visual, x = trainer.model.image.visual.eval(), torch.rand(3, 3, 16, 16)
    products = {n: (m.left * m.values.unsqueeze(1)) @ m.right for n, m in found.items()}  # U diag(S) V'
    with torch.no_grad():
        before = visual(x)
        merge_changes(visual)
        assert torch.equal(visual(x), before)
    assert set(visual.state_dict()) == names
    for name, product in products.items():
        path, _, parameter = name.rpartition(".0")[0].partition(".parametrizations.")
        merged = visual.get_parameter(f"{path}.{parameter}")
        torch.testing.assert_close(merged, product.reshape(merged.shape), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(original_tower(vit)(x), before)


def test_it_is_computed_in_float32_under_bfloat16(vit: str, images: str, tmp_path: Path) -> None:
    trainer = svd_trainer(vit, images, tmp_path, precision="bfloat16")
    trainer.train(Silent(), 0)
    layers = [m for m in trainer.model.modules() if isinstance(m, nn.Linear) and hasattr(m, "parametrizations")]
    plain = [layer.weight.detach().clone() for layer in layers]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, plain, strict=True))


def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(vit: str, images: str, tmp_path: Path) -> None:
    given = {"evaluation": False, "val_fraction": 0.0, "save_every": 1, "ema": 0.5}
    config = make_config(vit, images, train="svd", lr=0.05, **given)
    run_finetune(config, tmp_path / "whole", "")
    with pytest.raises(KeyboardInterrupt):
        run_finetune(config, tmp_path / "stopped", "", StopsAfter(24 + 3))  # 24 images are read
    resume_finetune(tmp_path / "stopped")
    run_finetune(make_config(vit, images, train="svd", lr=1e-30, **given), tmp_path / "still", "")
    whole, stopped = ((tmp_path / n / WEIGHTS_NAME).read_bytes() for n in ("whole", "stopped"))
    assert whole == stopped
    before, still = (load_model(n).model.state_dict() for n in (vit, f"local-dir:{tmp_path / 'still'}"))
    assert before.keys() == still.keys()
    assert all(torch.equal(value, still[name]) for name, value in before.items())  # nothing trained, nothing changed


@pytest.mark.slow
def test_with_a_divided_tower(vit: str, images: str, tmp_path: Path) -> None:
    given = runs(["tima"], vit, images, train="svd", lr=0.05, ema=0.9, batch_size=4)
    two = {name: {**settings, "fsdp": True} for name, settings in given.items()}
    assert_same_curves(train_all(given, 1, tmp_path / "1")["tima"], train_all(two, 2, tmp_path / "2")["tima"])


def test_what_has_no_singular_values_is_refused(vit: str, images: str, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"^`train=svd` and `lora` are two ways .*: choose one\.$"):
        make_config(vit, images, train="svd", lora=2)
    with pytest.raises(FinetuneError, match=r"^`train=svd` finds no linear layer"):
        train_singular_values(nn.Conv2d(3, 4, 3))
    with pytest.raises(FinetuneError, match="must be visual, svd, all or last-N"):
        make_config(vit, images, train="svd-2")
    deep = write_vit(tmp_path / "deep", layers=3)
    trainer = svd_trainer(deep, images, tmp_path / "out", grad_checkpointing=True, grad_clip=1.0)
    trainer.train(Silent(), 0)
