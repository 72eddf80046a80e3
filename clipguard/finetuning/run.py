"""A fine-tuning run, from settings to a finished folder."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available, is_wandb_available
from torch import nn

from clipguard.attacks.engine.evaluator import is_out_of_memory
from clipguard.attacks.threat import ThreatModel
from clipguard.core.device import choose_device
from clipguard.core.eps import PIXEL
from clipguard.core.errors import FinetuneError
from clipguard.core.notices import Notice, noticing
from clipguard.core.output import OutputFolder
from clipguard.core.progress import Progress, Silent
from clipguard.core.provenance import machine, versions
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.export import announce, finish
from clipguard.finetuning.methods.base import Method, Need, TextMode
from clipguard.finetuning.methods.registry import parse_method
from clipguard.finetuning.processes import RENDEZVOUS_TIMEOUT, Team, joined
from clipguard.finetuning.training.data import Pixels, TrainingData, Visits, choose_workers, open_data
from clipguard.finetuning.training.image_tower import ImageTower, choose_weights
from clipguard.finetuning.training.objective import Losses, Student
from clipguard.finetuning.training.text_side import TextSide
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.training.training_attack import TrainingAttack
from clipguard.finetuning.training.validation import Validation
from clipguard.models.description import describe_model
from clipguard.models.loading import LoadedModel, load_model
from clipguard.models.source import parse_source

log = logging.getLogger("clipguard")
SCHEMA, RUN_NAME = 1, "run.json"
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
UNMERGEABLE = ("free", "laat")  # text modes whose result is not in the weights


@dataclass
class FinetuneResult:
    """A finished run: its folder, and the content of its `run.json`.

    Of several processes only the main one finishes a run; the others have `run` as it began, not complete.
    """

    out: Path
    run: dict[str, Any]

    def to_json(self) -> str:
        """`run.json`, which is strict JSON: no NaN."""
        return to_json(self.run).decode()


def run_finetune(
    config: FinetuneConfig,
    out: Path | None,
    command: str,
    progress: Progress | None = None,
    *,
    rendezvous_timeout: float = RENDEZVOUS_TIMEOUT,
    on_start: Callable[[Path], None] | None = None,
) -> FinetuneResult:
    """Fine-tune into a new folder, by default `runs/TIME-METHOD-MODEL`; of several processes the main one takes it.

    Nothing is written before model, data and settings are known to fit. `command` is what to call again for the same
    run, for the record. `rendezvous_timeout`: seconds in which the other processes of a launch must have come.
    `on_start` is told the folder once it is taken.
    Raises ClipguardError for bad input, and FinetuneError at NaN; KeyboardInterrupt leaves a run to be resumed.
    """
    check(config)

    def take() -> OutputFolder:
        name = f"{config.method.partition('(')[0]}-"
        return OutputFolder(out) if out else OutputFolder.by_default(config.model, name)

    with (
        noticing() as notices,
        joined(choose_device(config.device), rendezvous_timeout) as team,
        _taken(team, take, on_start) as (path, folder),
    ):
        log.info("Settings: %s", ", ".join(f"{k} {v}" for k, v in config.to_dict().items() if v is not None))
        return _run(config, team, path, folder, command, None, progress or Silent(), notices)


def resume_finetune(
    out: Path,
    progress: Progress | None = None,
    *,
    rendezvous_timeout: float = RENDEZVOUS_TIMEOUT,
    on_start: Callable[[Path], None] | None = None,
) -> FinetuneResult:
    """Go on with an interrupted run, with its own settings; the result is that of a run without interruption.

    `rendezvous_timeout` and `on_start` are those of `run_finetune`.
    Raises FinetuneError if there is no such run, it is finished, or its model or data have changed, and OutputError if
    it is still under way.
    """
    config = FinetuneConfig.from_dict(read_unfinished(out)["config"])

    def take() -> OutputFolder:
        return ResumedFolder(out, option="--resume")

    with (
        noticing() as notices,
        joined(choose_device(config.device), rendezvous_timeout) as team,
        _taken(team, take, on_start) as (path, folder),
    ):
        with team.agree():
            before = read_unfinished(out)  # once more: it may have ended before the folder was ours
        return _run(config, team, path, folder, before["command"], before, progress or Silent(), notices)


class ResumedFolder(OutputFolder):
    """The folder of an interrupted run."""

    def may_go_on(self) -> bool:
        """Yes; what is in it was looked at."""
        return True


@contextmanager
def _taken(
    team: Team, take: Callable[[], OutputFolder], on_start: Callable[[Path], None] | None
) -> Iterator[tuple[Path, OutputFolder | None]]:
    """The folder of all processes, which the main one takes: its path, and the folder where this is that process."""
    folder = None
    with team.agree():
        if team.main:
            folder = take()
    with folder or nullcontext():
        path = team.share(folder.path if folder else None)
        if on_start and folder:
            on_start(path)
        yield path, folder


def read_unfinished(out: Path) -> dict[str, Any]:
    """The `run.json` of an interrupted run. Raises FinetuneError if there is none, or it is complete."""
    run = read_run(out)
    if run["complete"]:
        raise FinetuneError(f"The run in {out} is finished: there is nothing to resume. Start a new one with --out.")
    return run


def read_run(out: Path) -> dict[str, Any]:
    """The `run.json` of a fine-tuning run. Raises FinetuneError if the folder has none."""
    path = out / RUN_NAME
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        known = {"config", "complete", "command"} <= set(run)
    except (OSError, ValueError, TypeError):
        known = False  # told below, like a run.json of another command
    if known and run.get("schema", SCHEMA) > SCHEMA:
        raise FinetuneError(f"The run in {out} is of a newer clipguard (schema {run['schema']}). Update clipguard.")
    if known:
        return dict(run)
    raise FinetuneError(f"{out} holds no fine-tuning run: --resume takes the --out folder of one that was interrupted.")


def all_needs(method: Method) -> frozenset[Need]:
    """What a method needs at any time."""
    return frozenset().union(*(method.needs(i / 1000) for i in range(1001)))


def _run(
    config: FinetuneConfig,
    team: Team,
    out: Path,
    folder: OutputFolder | None,
    command: str,
    before: dict[str, Any] | None,
    progress: Progress,
    notices: list[Notice],
) -> FinetuneResult:
    method, mode = check(config)
    device = choose_device(config.device)
    progress = progress if team.main else Silent()
    with accelerated(config, device, out) as accelerator:
        with team.agree():
            data = open_data(config, needs_labels="labels" in all_needs(method))
            loaded = load_model(config.model, device=accelerator.device)
            for line in describe_model(loaded):
                log.info(line)
            torch.manual_seed(config.seed)  # low-rank weights begin at random
            losses = make_losses(config, method, mode, loaded, data, accelerator)
            pixels = Pixels(data, loaded.preprocess(), config)
            visits = make_visits(config, data, accelerator)
            validation = Validation(config, data, pixels, losses) if len(data.validation) else None
        trainer = Trainer(config, accelerator, losses, pixels, visits, validation, out)
        with team.agree():
            run = provenance(config, command, loaded, data, trainer, device) | {"notices": notices}
            if before is not None:
                check_unchanged(before, run, out)
            cached = pixels.read(np.concatenate([data.train, data.validation]), progress)
            if folder:
                folder.write_files({RUN_NAME: to_json(run)})
                if line := announce(config, data):
                    log.info(line)
        start_tracker(config, accelerator)
        with memory_advice(config):
            trainer.train(progress, choose_workers(config, cached, accelerator.device))
        if folder:
            finish(config, folder, run, loaded, data, trainer, progress)
            folder.write_files({RUN_NAME: to_json(run)})
            trainer.checkpoints.remove()
    return FinetuneResult(out, run)


def start_tracker(config: FinetuneConfig, accelerator: Accelerator) -> None:
    """Begin to log to the tracker that the settings name, if any; it writes into the folder."""
    if config.tracker != "none":
        settings = {name: value for name, value in config.to_dict().items() if value is not None}
        accelerator.init_trackers("tracker", config=settings)


@contextmanager
def memory_advice(config: FinetuneConfig) -> Iterator[None]:
    """Raise FinetuneError with a cure when memory does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise FinetuneError(
            f"Out of memory with --batch-size {config.batch_size}: halve it, double --accumulate to keep the step."
        ) from error


def check(config: FinetuneConfig) -> tuple[Method, TextMode]:
    """The method, and how it tunes the text. Raises ClipguardError for settings that no run could use."""
    config.check()
    parse_source(config.model)
    method = parse_method(config.method)
    mode = method.text_mode()
    if config.train == "all":
        if mode not in ("frozen", "encoder"):
            raise FinetuneError(f"--train all trains the text tower, but {config.method} has text={mode}; choose one.")
        mode = "encoder"
    if config.wise_ft < 1 and mode in UNMERGEABLE:
        raise FinetuneError(f"--wise-ft mixes weights, but text={mode} is not in the weights; leave it out.")
    if config.tracker != "none" and not TRACKERS[config.tracker]():
        raise FinetuneError(f"--tracker {config.tracker} needs a package: pip install 'clipguard[tracking]'.")
    return method, mode


def make_losses(
    config: FinetuneConfig,
    method: Method,
    mode: TextMode,
    loaded: LoadedModel,
    data: TrainingData,
    accelerator: Accelerator,
) -> Losses:
    """The student with its weights chosen, what it is compared with, and what attacks it."""
    visual = loaded.model.visual
    assert isinstance(visual, nn.Module)
    tower = ImageTower(visual, loaded.preprocessing).to(loaded.device)
    keeps_original = all_needs(method) & {"original_clean", "original_adversarial"}
    original = copy.deepcopy(tower) if keeps_original else None  # frozen and in eval mode, as all that is loaded
    choose_weights(visual, config)
    student = Student(tower, TextSide(loaded, data.class_names, data.templates, mode) if data.class_names else None)
    attack = TrainingAttack(
        ThreatModel(config.norm), config.eps_pixels, config.attack_steps, config.attack_step, config.random_start
    )
    return Losses(method, student, student, original, attack, loaded.info.logit_scale, accelerator.autocast)


def make_visits(config: FinetuneConfig, data: TrainingData, accelerator: Accelerator) -> Visits:
    """Which images every step takes; a length in epochs becomes one in steps."""
    visits = Visits(
        data.train,
        config.seed,
        config.batch_size,
        config.accumulate,
        start=0,
        steps=config.steps or 0,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    if config.epochs is None:
        return visits
    return replace(visits, steps=max(1, round(config.epochs * len(data.train) / visits.per_step)))


@contextmanager
def accelerated(config: FinetuneConfig, device: str, out: Path) -> Iterator[Accelerator]:
    """Accelerate, set up for one run: its settings are global, and a second run may want others."""
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    half = config.precision == "bfloat16" or (
        config.precision == "auto" and device.startswith("cuda") and torch.cuda.is_bf16_supported()
    )
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if half else "no",
        gradient_accumulation_steps=config.accumulate,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=out,
    )
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


def provenance(
    config: FinetuneConfig,
    command: str,
    loaded: LoadedModel,
    data: TrainingData,
    trainer: Trainer,
    device: str,
) -> dict[str, Any]:
    """`run.json` as a run starts: everything needed to repeat it."""
    validation = trainer.validation
    return {
        "schema": SCHEMA,
        "complete": False,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "config": config.to_dict(),
        "resolved": {
            "steps": trainer.steps,
            "images_per_step": trainer.visits.per_step,
            "warmup_steps": trainer.warmup,
            "step_size": config.attack_step * (PIXEL if config.norm == "linf" else 1),
            "eval_every": trainer.eval_every,
            "save_every": trainer.save_every,
            "text_mode": "none" if trainer.student.text is None else trainer.losses.method.text_mode(),
            "precision": "bfloat16" if trainer.accelerator.mixed_precision == "bf16" else "float32",
            "processes": trainer.accelerator.num_processes,
            "chosen_by": validation.criterion if validation else "the last step: there are no validation images",
        },
        "versions": versions() | {name: version(name) for name in ("accelerate", "safetensors")},
        "machine": machine(device),
        "base": loaded.info.to_dict(),
        "dataset": {
            "source": data.images.source,
            "split": data.images.split,
            "fingerprint": data.fingerprint(),
            "class_names": data.class_names,
            "templates": data.templates,
            "n_train": len(data.train),
            "n_validation": len(data.validation),
            "train_indices": data.train.tolist(),
            "validation_indices": data.validation.tolist(),
        },
    }


def check_unchanged(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Raise FinetuneError if a run cannot go on as it began."""
    for what, key in (("base", "sha256"), ("dataset", "fingerprint"), ("dataset", "train_indices")):
        if before[what][key] != now[what][key]:
            raise FinetuneError(
                f"The {'model' if what == 'base' else 'data set'} has changed since the run in {out} began; start a new"
                " run with --out."
            )


def to_json(run: dict[str, Any]) -> bytes:
    """Strict JSON: no NaN."""
    return (json.dumps(run, indent=2, allow_nan=False) + "\n").encode()
