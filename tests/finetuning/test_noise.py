"""Smoothed fine-tuning: Gaussian noise on what the tuned tower sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import StopsAfter, make_config, make_trainer

from clipguard.cli import run
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch, collate
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.training.training_attack import Noise
from clipguard.models.export import WEIGHTS_NAME

SIGMA = 0.2


def first_batch(trainer: Trainer) -> ImageBatch:
    visits = next(iter(trainer.sampler))
    return collate([trainer.images[visit] for visit in visits]).to(torch.device("cpu"))


class Seen:
    """What the tower is given, call by call."""

    def __init__(self, trainer: Trainer) -> None:
        self.images: list[Tensor] = []
        self.hook = trainer.model.image.register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        del module
        self.images.append(given[0].detach().clone())


@pytest.mark.parametrize("method", ["clean", "tecoa", "fare", "trades"])
def test_the_tuned_tower_sees_noise_on_top_of_images_in_range(
    method: str, vit: str, images: str, tmp_path: Path
) -> None:
    trainer = make_trainer(make_config(vit, images, method, noise=SIGMA), tmp_path)
    batch, seen = first_batch(trainer), Seen(trainer)
    noise = SIGMA * Noise(batch.keys, torch.device("cpu"), 4).normal(*batch.pixels.shape[1:])
    assert float(noise.std()) == pytest.approx(SIGMA, rel=0.1)
    terms = trainer.objective(trainer.model, batch, 0.0, trainer.model)
    assert all(torch.isfinite(value) for value in terms.losses.values())
    assert seen.images
    for given in seen.images:
        assert given.shape == batch.pixels.shape
        below = given - noise  # the image, clean or adversarial
        assert float(below.min()) > -1e-5
        assert float(below.max()) < 1 + 1e-5
        assert float((below - batch.pixels).abs().max()) <= 8 / 255 + 1e-5
        assert float(given.min()) < 0  # and nothing is clamped
    seen.hook.remove()


def test_the_frozen_original_sees_no_noise(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, "fare", noise=SIGMA), tmp_path)
    batch = first_batch(trainer)
    noisy = trainer.objective(trainer.model, batch, 0.0, trainer.model).batch
    plain = replace(trainer.objective, noise=0.0)(trainer.model, batch, 0.0, trainer.model).batch
    assert noisy.original_clean is not None
    assert plain.original_clean is not None
    assert torch.equal(noisy.original_clean, plain.original_clean)
    assert noisy.adversarial is not None
    assert plain.adversarial is not None
    assert not torch.equal(noisy.adversarial, plain.adversarial)


def test_noise_is_of_the_image_and_its_visit_alone(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, "clean", noise=SIGMA), tmp_path)
    batch = first_batch(trainer)
    whole = trainer.objective._noise(batch)
    parts = [trainer.objective._noise(part) for part in batch.split(1)]  # as several processes have them
    assert whole is not None
    assert torch.equal(whole, torch.cat([part for part in parts if part is not None]))
    other = batch._replace(keys=[key + 1 for key in batch.keys])
    again = trainer.objective._noise(other)
    assert again is not None
    assert not torch.isclose(whole, again).all()
    start = Noise(batch.keys, torch.device("cpu")).normal(*batch.pixels.shape[1:])  # of the attack
    assert not torch.isclose(whole, SIGMA * start).any(dim=0).all()


def config_of(vit: str, images: str, **settings: Any) -> FinetuneConfig:
    return make_config(vit, images, "tecoa", evaluation=False, val_fraction=0.0, save_every=1, **settings)


def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(vit: str, images: str, tmp_path: Path) -> None:
    config = config_of(vit, images, noise=SIGMA)
    run_finetune(config, tmp_path / "whole", "")
    with pytest.raises(KeyboardInterrupt):
        run_finetune(config, tmp_path / "stopped", "", StopsAfter(24 + 3))  # 24 images are read
    resume_finetune(tmp_path / "stopped")
    run_finetune(config_of(vit, images), tmp_path / "plain", "")
    whole, stopped, plain = ((tmp_path / n / WEIGHTS_NAME).read_bytes() for n in ("whole", "stopped", "plain"))
    assert whole == stopped
    assert whole != plain
    recorded = [json.loads((tmp_path / n / "run.json").read_text())["config"] for n in ("whole", "plain")]
    assert recorded[0]["noise"] == SIGMA
    assert "noise" not in recorded[1]
    assert FinetuneConfig.from_dict(recorded[1]).noise == 0


def test_bad_noise_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "finetune", "--noise", "-1"]) == 2
    assert "--noise must be a number of at least 0, not -1" in capfd.readouterr().err
    with pytest.raises(FinetuneError, match="`noise` must be a number"):
        make_config("tiny", "emoji-food", noise="much")
