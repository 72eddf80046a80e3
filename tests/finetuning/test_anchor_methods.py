"""LAAT and AGFT against numbers worked out by hand, and as TeCoA, which both become."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import SMALL, make_trainer, write_images

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.data.batches import load_batches
from clipguard.finetuning.data.training_data import open_for
from clipguard.finetuning.methods.base import Batch, Method
from clipguard.finetuning.methods.classes.agft import AGFT
from clipguard.finetuning.methods.classes.laat import LAAT
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.registry import parse_method
from clipguard.finetuning.settings import resolve

# Two classes at 0 and 90 degrees; an adversarial image of each, its clean image and that under the original tower.
ADVERSARIAL, CLEAN, ORIGINAL = (0.9, 0.3), (0.2, 1.4), (0.1, 1.5)
SCALE = 4.0


def at(angles: tuple[float, ...]) -> Tensor:
    return 2 * torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


@pytest.fixture
def batch() -> Batch:
    adversarial, clean = at(ADVERSARIAL).requires_grad_(), at(CLEAN).requires_grad_()
    return Batch(
        torch.eye(2), torch.eye(2), SCALE, torch.tensor([0, 1]), adversarial, clean, original_clean=at(ORIGINAL)
    )


def softmax(angle: float, scale: float) -> tuple[float, float]:
    first = 1 / (1 + math.exp(scale * (math.sin(angle) - math.cos(angle))))
    return first, 1 - first


def values(method: Method, batch: Batch) -> dict[str, float]:
    return {name: term.item() for name, term in method.terms(batch, 0.5).items()}


def test_laat_is_cross_entropy_of_bare_cosines_and_smoothness(batch: Batch) -> None:
    method = LAAT(beta=2)
    ce = -sum(math.log(softmax(angle, 1.0)[y]) for y, angle in enumerate(ADVERSARIAL)) / 2
    cosines = [math.cos(a - b) for a, b in zip(ADVERSARIAL, CLEAN, strict=True)]
    expected = {"ce": pytest.approx(ce, rel=1e-5), "smoothness": pytest.approx(2 * (1 - sum(cosines) / 2), rel=1e-5)}
    assert values(method, batch) == expected
    assert method.text_mode() == "laat"
    gradients = torch.autograd.grad(method.terms(batch, 0.0)["smoothness"], [batch.adversarial, batch.clean])  # type: ignore[arg-type]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_laat_at_clip_s_temperature_without_smoothness_is_tecoa(batch: Batch) -> None:
    method = LAAT(tau=1 / SCALE, beta=0)
    assert method.needs(0.0) == TeCoA().needs(0.0)
    assert values(method, replace(batch, clean=None)) == values(TeCoA(), batch)
    with pytest.raises(FinetuneError, match="laat: tau must be above 0"):
        parse_method("laat(tau=0)")


def test_laat_s_anchors_are_spread_and_nothing_of_them_is_trained(vit: str, images: str, tmp_path: Path) -> None:
    """The farthest of them is at 90 degrees to the pole of all, which the plain texts are not."""
    given = {**SMALL, "method": "laat", "model": vit, "dataset": images, "templates": "single"}
    trainer = make_trainer(resolve(given), tmp_path)
    assert trainer.model.text_parameters() == []
    text, original = trainer.model(), trainer.model.original_text()
    assert trainer.model.text is not None
    assert trainer.model.text.prompts is not None
    pole = trainer.model.text.prompts.flatten(0, 1).mean(dim=0)
    prompts = trainer.model.text.map(trainer.model.text.prompts, [])  # type: ignore[misc]
    assert (prompts @ pole).abs().amin().item() == pytest.approx(0, abs=1e-6)
    assert (text @ text.T).min() < (original @ original.T).min()


def test_agft_is_cross_entropy_with_the_original_s_soft_answer(batch: Batch) -> None:
    method = AGFT(scale=1.5, ratio=0.5)
    total = 0.0
    for teacher, student in zip(ORIGINAL, ADVERSARIAL, strict=True):
        q, p = softmax(teacher, 0.75 * SCALE), softmax(student, 1.5 * SCALE)
        total -= sum(q[k] * math.log(p[k]) for k in (0, 1))
    without = replace(batch, labels=None, clean=None)
    assert values(method, without) == {"soft_ce": pytest.approx(total / 2, rel=1e-5)}
    assert batch.adversarial is not None
    assert method.attack_objective(batch.adversarial, without).mean().item() == pytest.approx(total / 2, rel=1e-5)
    assert "labels" not in method.needs(0.5)
    with pytest.raises(FinetuneError, match="agft: scale must be above 0"):
        parse_method("agft(scale=0)")


def test_agft_with_a_sharp_teacher_is_tecoa_on_the_classes_it_sees(batch: Batch) -> None:
    """Here these are the labels."""
    assert values(AGFT(scale=1, ratio=1e4), batch)["soft_ce"] == pytest.approx(values(TeCoA(), batch)["ce"], rel=1e-6)


def test_agft_has_no_gradient_where_the_student_answers_as_the_teacher(batch: Batch) -> None:
    same = replace(batch, adversarial=at(ORIGINAL).requires_grad_())
    for ratio, at_rest in ((1.0, True), (0.4, False)):
        loss = AGFT(ratio=ratio).terms(same, 0.0)["soft_ce"]
        (gradient,) = torch.autograd.grad(loss, [same.adversarial])  # type: ignore[list-item]
        assert (gradient.abs().max() < 1e-6) == at_rest


def test_images_without_labels_come_with_class_names(vit: str, tmp_path: Path) -> None:
    folder = Path(write_images(tmp_path / "images", classes=1))
    for path in folder.rglob("*.png"):
        path.rename(folder / path.name)
    shutil.rmtree(folder / "kind 0")
    given = {**SMALL, "method": "agft", "model": vit, "dataset": str(folder), "preset": "none"}
    with pytest.raises(FinetuneError, match=r"agft needs no labels, but class names: give `classes` \(.* 0.png"):
        open_for(AGFT(), resolve(given))
    config = resolve({**given, "classes": "cat,dog,red car", "templates": "a drawing of a {}."})
    data = open_for(AGFT(), config)
    assert (data.labels, data.class_names, data.templates) == (None, ["cat", "dog", "red car"], ["a drawing of a {}."])
    trainer = make_trainer(config, tmp_path)
    trainer.model.train()
    scalars, _ = trainer.step(load_batches(trainer.images, trainer.sampler, 0), 0.0, look=True)
    assert scalars[0].keys() == {"attack", "soft_ce", "loss"}  # and no accuracy
