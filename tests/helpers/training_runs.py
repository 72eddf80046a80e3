"""Small fine-tuning runs for tests: a ViT that trains in moments, and images to train it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file

from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.progress import Silent
from clipguard.finetuning.checks import check
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.images import TrainingImages
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.finetuning.data.training_data import open_for
from clipguard.finetuning.processes.team import ALONE, Team
from clipguard.finetuning.settings import resolve
from clipguard.finetuning.training.objective import make_objective
from clipguard.finetuning.training.trainer import Trainer
from clipguard.models import load_model

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
SMALL: dict[str, Any] = {"steps": 4, "batch_size": 4, "attack_steps": 2, "eps": "8", "lr": 1e-3, "warmup_steps": 1}


def write_vit(folder: Path, seed: int = 0, text_layers: int = 1, **vision: Any) -> str:
    """A ViT with random weights as a `local-dir:` model; returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": {**VISION, **vision}, "text_cfg": {**TEXT, "layers": text_layers}},
        "preprocess_cfg": {},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    with quiet_libraries():
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def write_images(folder: Path, classes: int = 3, n: int = 8, size: int = 16) -> str:
    """`class/x.png`: noise around a colour of the class, and its caption in `x.txt`; returns the path."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"kind {label}").mkdir(parents=True)
        for number in range(n):
            colour = np.roll([200, 120, 60], label) + generator.integers(-40, 40, (size, size, 3))
            Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(folder / f"kind {label}" / f"{number}.png")
            (folder / f"kind {label}" / f"{number}.txt").write_text(f"kind {label} with the number {number // 2}")
    return str(folder)


def make_config(model: str, dataset: str, method: str = "tecoa", **settings: Any) -> FinetuneConfig:
    """Settings of a run of four steps, or others; as from a file, which may name what a method does not look at."""
    from_file = {**SMALL, "model": model, "dataset": dataset, "preset": "none", **settings}
    return resolve({"method": method}, from_file)


def make_trainer(config: FinetuneConfig, out: Path, team: Team = ALONE) -> Trainer:
    """A trainer as a run makes it, without validation."""
    method, text_mode = check(config)
    accelerator = Accelerator(cpu=config.device != "cuda", gradient_accumulation_steps=config.accumulate)
    data = open_for(method, config)
    loaded = load_model(config.model, device=accelerator.device)
    torch.manual_seed(config.seed)
    model, objective = make_objective(config, method, text_mode, loaded, data, accelerator.autocast)
    images = TrainingImages(data, loaded.preprocess(), config, seen=method.sees_images())
    images.cache(data.train, Silent(), team)
    sampler = ResumableBatchSampler.of_run(config, data.train, team)
    return Trainer(config, accelerator, model, objective, images, sampler, None, out)


class StopsAfter(Silent):
    """Presses Ctrl-C at so many steps or images."""

    def __init__(self, n: int) -> None:
        self.left = n

    def advance(self, note: str = "") -> None:  # noqa: ARG002
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
