"""TGA-ZSR, Comp-TGA and SAFT against maps and losses worked out by hand, and the patch tokens that they look at."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_runs import make_config, make_trainer, write_vit

import clipguard
from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Silent
from clipguard.finetuning.data.batches import load_batches
from clipguard.finetuning.methods.base import Batch, Method
from clipguard.finetuning.methods.classes.attention import attention_map, map_distance
from clipguard.finetuning.methods.classes.comp_tga import CompTGA
from clipguard.finetuning.methods.classes.saft import SAFT
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.classes.tga_zsr import TGAZSR
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.tuned.image_tower import ImageTower
from clipguard.models.loading import load_model

X, Y = (1.0, 0.0), (0.0, 1.0)
BETWEEN = (math.cos(math.pi / 3), math.sin(math.pi / 3))  # half as near to X as X


def rows(*tokens: tuple[float, float], scale: float = 3.0) -> Tensor:
    """One image's patches, (1, N, 2)."""
    return scale * torch.tensor([tokens])


@pytest.fixture
def batch() -> Batch:
    """One image of class X, whose clean patches are seen as the original sees them, and adversarial ones reversed."""
    adversarial = torch.tensor([[0.6, 0.8]], requires_grad=True)
    return Batch(
        torch.eye(2),
        torch.eye(2),
        4.0,
        torch.tensor([0]),
        adversarial,
        clean_patches=rows(X, Y, BETWEEN).requires_grad_(),
        adversarial_patches=rows(Y, X, BETWEEN).requires_grad_(),
        original_clean_patches=rows(X, Y, BETWEEN, scale=5.0).requires_grad_(),
        class_prompts=torch.stack([torch.eye(2), torch.eye(2)], dim=1),
        original_prompts=torch.stack([torch.eye(2), torch.eye(2)], dim=1),
        negative_text=torch.eye(2).flip(0),
    )


def values(method: Method, batch: Batch) -> dict[str, float]:
    return {name: term.item() for name, term in method.terms(batch, 0.5).items()}


def test_two_patches_have_a_map_of_one_and_zero_whatever_their_cosines() -> None:
    text = torch.tensor([[X]])
    for near, far in ((0.1, 0.2), (0.1, 3.0), (1.5, 1.6)):
        patches = torch.tensor([[[2 * math.cos(near), 2 * math.sin(near)], [9 * math.cos(far), 9 * math.sin(far)]]])
        assert attention_map(patches, text).tolist() == [[[1, 0]]]
    assert attention_map(rows(X, Y, BETWEEN), text)[0, 0].tolist() == pytest.approx([1, 0, 0.5], abs=1e-6)
    assert attention_map(rows(X, X), text).tolist() == [[[0, 0]]]  # flat


def test_distances_of_maps_are_those_of_maps_drawn_on_224_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand((2, 3, 2, 49), generator=generator)
    drawn = [F.interpolate(m.view(3, 2, 7, 7), 224, mode="nearest").flatten(2) for m in (one, other)]
    expected = torch.linalg.vector_norm(drawn[0] - drawn[1], dim=2).mean(dim=1)
    torch.testing.assert_close(map_distance(one, other), expected, rtol=1e-4, atol=0)
    smooth = [F.interpolate(m.view(3, 2, 7, 7), 224, mode="bilinear").flatten(2) for m in (one, other)]
    ratio = torch.linalg.vector_norm(smooth[0] - smooth[1], dim=2).mean(dim=1) / expected
    assert 0.6 < ratio.min() < ratio.max() < 0.8  # as the docstring says of patches with nothing in common


def test_tga_is_tecoa_and_two_distances(batch: Batch) -> None:
    """Maps: original (1, 0, 1/2), clean the same, adversarial (0, 1, 1/2)."""
    ce = math.log(1 + math.exp(4 * (0.8 - 0.6)))
    found = values(TGAZSR(alpha=0.5, beta=0.25), batch)
    expected = {"ce": ce, "refinement": 0.5 * 224 * math.sqrt(2 / 3), "constraint": 0}
    assert found == {name: pytest.approx(value, rel=1e-5, abs=1e-4) for name, value in expected.items()}
    moved = replace(batch, clean_patches=rows(BETWEEN, Y, X))  # (1/2, 0, 1)
    assert values(TGAZSR(beta=0.25), moved)["constraint"] == pytest.approx(0.25 * 224 * math.sqrt(0.5 / 3), rel=1e-5)


@pytest.mark.parametrize("kind", [TGAZSR, CompTGA, SAFT])
def test_distances_reach_the_tower_in_training_and_never_the_original(kind: type[TGAZSR], batch: Batch) -> None:
    moved = replace(batch, clean_patches=rows(BETWEEN, Y, (0.9, 0.1)).requires_grad_())
    leaves = {"refinement": moved.adversarial_patches, "constraint": moved.clean_patches}
    all_leaves = [moved.adversarial, *leaves.values(), moved.original_clean_patches]
    terms = kind().terms(moved, 0.0)
    for name, leaf in [("ce", moved.adversarial), *leaves.items()]:
        gradients = torch.autograd.grad(terms[name], all_leaves, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]
        reached = [one for one, gradient in zip(all_leaves, gradients, strict=True) if gradient is not None]
        assert len(reached) == 1
        assert reached[0] is leaf


@pytest.mark.parametrize("scale", [3.0, 5.0])
def test_equal_maps_have_no_gradient(scale: float, batch: Batch) -> None:
    """As at the first step, when the tower in training is the original; also where they differ by rounding."""
    assert batch.clean_patches is not None
    same = replace(batch, original_clean_patches=rows(X, Y, BETWEEN, scale=scale))
    (gradient,) = torch.autograd.grad(TGAZSR().terms(same, 0.0)["constraint"], [batch.clean_patches])
    assert gradient.abs().max() == 0


def test_comp_tga_leaves_out_what_the_negated_text_sees(batch: Batch) -> None:
    """Class map (1, 0, c), negated map (0, 1, d): together (1, 0, c (1 - d))."""
    c, d = BETWEEN[0], BETWEEN[1]
    method = CompTGA(alpha=1)
    assert method.maps(batch.clean_patches, batch)[0, 0].tolist() == pytest.approx([1, 0, c * (1 - d)], abs=1e-6)
    found = values(method, batch)
    assert found["refinement"] == pytest.approx(224 * math.sqrt(2 / 3), rel=1e-5)
    opposite = replace(batch, negative_text=torch.eye(2))  # which sees what the class does: nothing is left
    assert method.maps(rows(X, Y), opposite).abs().max() < 1e-6


def test_saft_is_tga_for_each_prompt(batch: Batch) -> None:
    assert values(SAFT(), batch) == pytest.approx(values(TGAZSR(), batch), rel=1e-6)
    flipped = torch.stack(
        [torch.eye(2), torch.eye(2).flip(0)], dim=1
    )  # the second prompt takes the classes for another
    both = replace(batch, class_prompts=flipped, original_prompts=flipped)
    found = values(SAFT(alpha=1), both)
    first, second = (math.log(1 + math.exp(sign * 4 * (0.8 - 0.6))) for sign in (1, -1))
    assert found["ce"] == pytest.approx((first + second) / 2, rel=1e-5)
    # Maps of X: (1, 0, c) and (0, 1, c). Of Y: (0, 1, d) and (1, 0, d).
    assert found["refinement"] == pytest.approx(224 * math.sqrt(2 / 3), rel=1e-5)
    assert batch.adversarial is not None
    assert SAFT().attack_objective(batch.adversarial, both).tolist() == pytest.approx([found["ce"]])


@pytest.mark.parametrize("kind", [TGAZSR, CompTGA, SAFT])
def test_without_weights_they_are_tecoa(kind: type[TGAZSR], batch: Batch) -> None:
    method = kind(alpha=0, beta=0)
    assert method.needs(0.0) - {"class_prompts"} == TeCoA().needs(0.0)
    bare = Batch(batch.text, batch.text, 4.0, batch.labels, batch.adversarial, class_prompts=batch.class_prompts)
    assert values(method, bare) == values(TeCoA(), batch)


@pytest.mark.parametrize("pool", [{}, {"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_patches_are_what_the_embedding_is_made_of(pool: dict[str, Any], images: str, tmp_path: Path) -> None:
    """Token by token through the last normalisation and the projection; the embedding is that of a plain pass."""
    trainer = make_trainer(make_config(write_vit(tmp_path / "vit", **pool), images, "tga-zsr"), tmp_path)
    tower = trainer.model.image
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    visual: Any = tower.visual
    visual.transformer.register_forward_hook(lambda _module, _args, out: seen.append(out))
    plain = tower(x)
    embeddings, patches = tower.with_patches(x)
    assert torch.equal(embeddings, plain)
    assert len(seen) == 2
    expected = visual.ln_post(seen[0][:, 1:]) @ visual.proj
    torch.testing.assert_close(patches, expected, rtol=0, atol=1e-6)
    assert patches.shape == (2, 16, 16)
    with tower.through(visual.forward):  # as of a compiled tower, whose hooks are left out
        assert torch.equal(tower.with_patches(x)[1], patches)
    if pool == {"pool_type": "avg"}:
        torch.testing.assert_close(patches.mean(dim=1), embeddings, rtol=0, atol=1e-6)


def passes_of_a_step(trainer: Trainer) -> Counter[str]:
    """Forward passes through the image towers, of the tuned and the original one."""
    found: Counter[str] = Counter()
    towers = {"tuned": trainer.model.image, "original": trainer.objective.original}
    hooks = [
        tower.visual.register_forward_hook(lambda *_, name=name: found.update([name]))
        for name, tower in towers.items()
        if isinstance(tower, ImageTower)
    ]
    trainer.model.train()
    trainer.step(load_batches(trainer.images, trainer.sampler, 0), 0.0, look=False)
    for hook in hooks:
        hook.remove()
    return found


def test_maps_cost_no_pass_of_their_own(vit: str, images: str, tmp_path: Path) -> None:
    """Clean and adversarial images once each, and two steps of attack and its last look; the original tower once."""
    for method in ("tga-zsr", "comp-tga", "saft"):
        trainer = make_trainer(make_config(vit, images, method, templates="ensemble"), tmp_path)
        like = make_trainer(make_config(vit, images, "pmg-aft"), tmp_path)
        assert passes_of_a_step(trainer) == passes_of_a_step(like)
        assert trainer.objective.original is not None
        assert all(p.grad is None and not p.requires_grad for p in trainer.objective.original.parameters())
    bare = make_trainer(make_config(vit, images, "saft(alpha=0,beta=0)"), tmp_path)
    assert bare.objective.original is None
    assert passes_of_a_step(bare) == passes_of_a_step(make_trainer(make_config(vit, images, "tecoa"), tmp_path))


def losses(out: Path, model: str, images: str, method: str = "comp-tga", **settings: Any) -> list[float]:
    given = {"optimizer": "sgd", "lr": 0.01, "norm": "l2", "eps": "3", "attack_steps": 1, **settings}
    trainer = make_trainer(make_config(model, images, method, **given), out)
    trainer.settle(None)
    trainer.train(Silent(), 0)
    return [row["loss"] for row in read_metrics(out) if "loss" in row]


def test_maps_go_with_what_else_there_is(vit: str, images: str, tmp_path: Path) -> None:
    """Parts of a batch, recomputed activations, low-rank changes, last layers, half precision."""
    plain = losses(tmp_path / "plain", vit, images)
    for number, given in enumerate(({"batch_size": 2, "effective_batch": 4}, {"grad_checkpointing": True})):
        assert losses(tmp_path / str(number), vit, images, **given) == pytest.approx(plain, rel=1e-5)
    half = losses(tmp_path / "half", vit, images, precision="bfloat16")
    assert half == pytest.approx(plain, rel=0.05)
    for number, given in enumerate(({"lora": 2}, {"train": "last-2"})):
        few = losses(tmp_path / f"few-{number}", vit, images, **given)
        saving = losses(tmp_path / f"saving-{number}", vit, images, grad_checkpointing=True, **given)
        assert few[0] == pytest.approx(plain[0], rel=1e-5)
        assert saving == pytest.approx(few, rel=1e-5)


def test_text_may_be_tuned_with_every_prompt(vit: str, images: str, tmp_path: Path) -> None:
    config = make_config(vit, images, "saft", templates="ensemble", train="all")
    trainer = make_trainer(config, tmp_path)
    trainer.model.train()
    assert trainer.model.text_parameters()
    _, norms = trainer.step(load_batches(trainer.images, trainer.sampler, 0), 0.0, look=False)
    assert norms["text_gradient"] > 0


@pytest.mark.parametrize("kind", [TGAZSR, CompTGA, SAFT])
def test_the_target_is_the_original_model_s_by_its_own_text(kind: type[TGAZSR], batch: Batch) -> None:
    """Tuned text moves the maps of the tower in training, and not what they are to come to."""
    text = torch.eye(2).flip(0).requires_grad_()
    tuned = replace(batch, text=text, class_prompts=torch.stack([text, text], dim=1))
    method = kind()
    assert torch.equal(method.target(tuned), method.target(batch))
    assert not method.target(tuned).requires_grad
    assert not torch.equal(method.maps(batch.clean_patches, tuned), method.maps(batch.clean_patches, batch))
    assert method.maps(batch.clean_patches, tuned).requires_grad


@pytest.mark.parametrize("method", ["tga-zsr", "comp-tga", "saft"])
def test_the_target_stays_when_all_is_trained(method: str, vit: str, images: str, tmp_path: Path) -> None:
    config = make_config(vit, images, method, templates="ensemble", train="all", optimizer="sgd", lr=0.1)
    trainer = make_trainer(config, tmp_path)
    inner = trainer.objective.method
    assert isinstance(inner, TGAZSR)
    (first, *_) = load_batches(trainer.images, trainer.sampler, 0)

    def maps() -> tuple[Tensor, Tensor]:
        found = trainer.objective(trainer.model, first, 0.0, forward=trainer.model).batch
        return inner.target(found), inner.maps(found.original_clean_patches, found).detach()

    before, seen_before = maps()
    torch.testing.assert_close(before, seen_before, rtol=0, atol=1e-5)  # at first both texts are the same
    with torch.no_grad():
        for parameter in trainer.model.text_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    after, seen_after = maps()
    assert torch.equal(after, before)
    assert not torch.allclose(seen_after, seen_before, atol=0.01)


def test_towers_without_patches_are_refused(images: str, tmp_path: Path) -> None:
    pooled = write_vit(tmp_path / "pooled", attentional_pool=True, attn_pooler_heads=2)
    one = write_vit(tmp_path / "one", patch_size=16)
    for model, why in (
        ("tiny", "the tower of tiny is a ConvNeXt of timm: choose an open_clip ViT"),
        (pooled, "pools its patches by attention"),
        (one, "has one patch"),
    ):
        with pytest.raises(FinetuneError, match=f"tga-zsr compares attention over image patches, .*{why}"):
            make_trainer(make_config(model, images, "tga-zsr"), tmp_path)
    make_trainer(make_config("tiny", images, "saft(alpha=0,beta=0)"), tmp_path)


def test_what_was_trained_is_a_plain_checkpoint(vit: str, images: str, tmp_path: Path) -> None:
    settings = {"steps": 2, "batch_size": 4, "eps": "8", "attack_steps": 1, "preset": "none", "eval_samples": 6}
    result = clipguard.finetune("tga-zsr", model=vit, dataset=images, out=tmp_path / "out", **settings)
    tuned, before = load_model(f"local-dir:{result.out}"), load_model(vit)
    assert tuned.model.state_dict().keys() == before.model.state_dict().keys()
    assert tuned.tower_sha256 != before.tower_sha256
