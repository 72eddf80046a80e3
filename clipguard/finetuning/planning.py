"""What a fine-tuning run would take: everything is opened as for a run, and a few real steps are timed."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipguard.core.environment.device import choose_device
from clipguard.core.environment.memory import peak_memory, watch_memory
from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Progress, Silent
from clipguard.core.records.provenance import Machine, machine
from clipguard.finetuning.checks import check
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch, choose_decoders, load_batches
from clipguard.finetuning.data.images import TrainingImages
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.finetuning.data.training_data import open_for
from clipguard.finetuning.processes.launch import read_launch
from clipguard.finetuning.processes.meeting import RENDEZVOUS_TIMEOUT, joined
from clipguard.finetuning.sources import NAMED, Sources
from clipguard.finetuning.training.accelerator import accelerated
from clipguard.finetuning.training.fitting import PHASES
from clipguard.finetuning.training.objective import make_objective
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.training.validation import Validation

SCHEMA = 1
TIMED_STEPS = 3  # of each phase, after one that does not count
TIMED = "timed steps"  # the name of this part


@dataclass(frozen=True)
class TrainingEstimate:
    """What a fine-tuning run would take, but for its final evaluation.

    Attributes:
        steps: of the run.
        images_per_step: that each takes.
        steps_per_second: measured here.
        validations: how often the model is scored on the way.
        validation_seconds: of one, measured; 0 without.
        setup_seconds: of reading model and images here.
        memory: peak MiB: `host`, and `gpu` where there is one.
        machine: where it was measured.
        price: of this machine an hour; None: not asked.
    """

    steps: int
    images_per_step: int
    steps_per_second: float
    validations: int
    validation_seconds: float
    setup_seconds: float
    memory: dict[str, float | None]
    machine: Machine
    price: float | None = None

    @property
    def training_seconds(self) -> float:
        """Of the steps alone, `training_seconds` of run.json."""
        return self.steps / self.steps_per_second

    @property
    def seconds(self) -> float:
        """From the start of the command to the last validation."""
        return self.setup_seconds + self.training_seconds + self.validations * self.validation_seconds

    @property
    def cost(self) -> float | None:
        """In the currency of the price."""
        return None if self.price is None else self.price * self.seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        derived = {
            "training_seconds": round(self.training_seconds, 2),
            "seconds": round(self.seconds, 2),
            "cost": None if self.cost is None else round(self.cost, 4),
        }
        rounded = {
            "steps_per_second": round(self.steps_per_second, 4),
            "validation_seconds": round(self.validation_seconds, 2),
            "setup_seconds": round(self.setup_seconds, 2),
        }
        return {"schema": SCHEMA, **asdict(self), **rounded, **derived}

    def to_json(self) -> str:
        """Strict JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def plan_finetune(
    config: FinetuneConfig,
    price: float | None = None,
    progress: Progress | None = None,
    sources: Sources = NAMED,
) -> TrainingEstimate:
    """Open what a run would open, and time a few steps and one validation; nothing is written.

    Args:
        config: all settings of the run.
        price: of this machine an hour.
        progress: told of images and steps.
        sources: objects in place of the model's or the data set's name.

    Raises:
        ClipguardError: for what a run would refuse, and where several processes were launched.
    """
    check(config, sources)
    if config.fsdp:
        raise FinetuneError("A plan is measured with one process, which has the tower whole: leave `fsdp` out.")
    if read_launch().size > 1:
        raise FinetuneError("A plan is measured with one process; start it without torchrun.")
    device = choose_device(config.device)
    watch_memory(device)
    with joined(device, RENDEZVOUS_TIMEOUT), tempfile.TemporaryDirectory() as nowhere:
        return _measure(config, price, progress or Silent(), sources, device, Path(nowhere))


def _measure(
    config: FinetuneConfig, price: float | None, progress: Progress, sources: Sources, device: str, nowhere: Path
) -> TrainingEstimate:
    started = time.perf_counter()
    method, text_mode = check(config, sources)
    with accelerated(config, device, nowhere) as accelerator:
        data = open_for(method, config, sources)
        loaded = sources.load(config, accelerator.device)
        torch.manual_seed(config.seed)
        model, objective = make_objective(config, method, text_mode, loaded, data, accelerator.autocast)
        images = TrainingImages(data, loaded.preprocess(), config, seen=method.sees_images())
        sampler = ResumableBatchSampler.of_run(config, data.train)
        validation = Validation(config, data, images, objective) if len(data.validation) else None
        trainer = Trainer(config, accelerator, model, objective, images, sampler, validation, nowhere)
        trainer.settle(None)
        cached = images.cache(np.concatenate([data.train, data.validation]), progress)
        enough = replace(sampler, steps=max(sampler.steps, len(PHASES) * (1 + TIMED_STEPS)))
        batches = load_batches(images, enough, choose_decoders(config, cached, accelerator.device))
        setup = time.perf_counter() - started
        per_step = _seconds_a_step(trainer, batches, progress)
        once = _seconds_of_validation(trainer, progress)
    return TrainingEstimate(
        steps=trainer.steps,
        images_per_step=sampler.images_per_step,
        steps_per_second=1 / per_step,
        validations=math.ceil(trainer.steps / trainer.eval_every) if validation else 0,
        validation_seconds=once,
        setup_seconds=setup,
        memory=peak_memory(device),
        machine=machine(device),
        price=price,
    )


def _seconds_a_step(trainer: Trainer, batches: Iterator[ImageBatch], progress: Progress) -> float:
    """Mean over the phases of a method."""
    trainer.model.train()
    progress.start(TIMED, len(PHASES) * (1 + TIMED_STEPS))
    spent = 0.0
    for phase in PHASES:
        for number in range(1 + TIMED_STEPS):
            started = time.perf_counter()
            trainer.step(batches, phase, look=False)
            if trainer.average is not None:
                trainer.average.follow(trainer.model, first=False)
            if trainer.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            spent += time.perf_counter() - started if number else 0
            progress.advance()
    return spent / (len(PHASES) * TIMED_STEPS)


def _seconds_of_validation(trainer: Trainer, progress: Progress) -> float:
    if trainer.validation is None:
        return 0.0
    started = time.perf_counter()
    trainer.validation(trainer.trained_model(), progress, trainer.step.rows or trainer.sampler.batch_size)
    return time.perf_counter() - started
