"""A fine-tuning run, from settings to a finished folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clipguard.attacks.engine.passes.batching import is_out_of_memory
from clipguard.core.environment.decoders import explain_lost_decoders
from clipguard.core.environment.device import choose_device
from clipguard.core.errors import FinetuneError
from clipguard.core.files.output import OutputFolder
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
from clipguard.finetuning.checks import check, check_processes
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import choose_decoders
from clipguard.finetuning.data.images import TrainingImages
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.finetuning.data.training_data import TrainingData, open_for
from clipguard.finetuning.final_evaluation import announce, choose_images, evaluate, no_evaluation
from clipguard.finetuning.output.card import write_card
from clipguard.finetuning.output.curves import draw_curves
from clipguard.finetuning.output.export import describe_text, export
from clipguard.finetuning.output.record import (
    RUN_NAME,
    RunRecord,
    check_unchanged,
    read_run,
    read_unfinished,
    start_record,
    to_json,
)
from clipguard.finetuning.output.result import FinetuneResult
from clipguard.finetuning.processes.meeting import RENDEZVOUS_TIMEOUT, joined
from clipguard.finetuning.processes.team import Team
from clipguard.finetuning.restart import ResumedFolder, begun_in, images_of_a_pass, settings_of_run, take_again
from clipguard.finetuning.sources import NAMED, Sources
from clipguard.finetuning.training.accelerator import accelerated, start_tracker
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.training.objective import make_objective
from clipguard.finetuning.training.trainer import Trainer
from clipguard.finetuning.training.validation import Validation
from clipguard.models.checkpoint.reader import hash_file
from clipguard.models.description import describe_model
from clipguard.models.export import WEIGHTS_NAME
from clipguard.models.loading import LoadedModel, load_model
from clipguard.models.prompts.files import read_prompts, with_prompts
from clipguard.models.prompts.learned import PROMPTS_NAME

log = logging.getLogger("clipguard")


def run_finetune(
    config: FinetuneConfig,
    out: Path | None,
    command: str,
    progress: Progress | None = None,
    *,
    rendezvous_timeout: float = RENDEZVOUS_TIMEOUT,
    on_start: Callable[[Path], None] | None = None,
    sources: Sources = NAMED,
) -> FinetuneResult:
    """Fine-tune into a new folder; of several processes the main one takes it.

    Nothing is written before model, data and settings are known to fit.

    Args:
        config: all settings.
        out: the folder; None: `runs/TIME-METHOD-MODEL`.
        command: what to call again for the same run, for the record.
        progress: told of every image and step.
        rendezvous_timeout: seconds in which the other processes of a launch must have come.
        on_start: told the folder once it is taken.
        sources: objects in place of the model's or the data set's name.

    Raises:
        ClipguardError: for bad input.
        FinetuneError: at NaN, or when memory does not suffice.
        KeyboardInterrupt: at Ctrl-C; it leaves a run to be resumed.
    """
    check(config, sources)
    check_processes(config)

    def take() -> OutputFolder:
        name = f"{config.method.partition('(')[0]}-"
        return OutputFolder(out) if out else OutputFolder.by_default(config.model, name)

    with noticing() as notices, joined(choose_device(config.device), rendezvous_timeout) as team:
        if earlier := team.remembered():
            return _start_again(earlier, config, sources, team, command, progress or Silent(), notices, on_start)
        with _taken(team, take, on_start) as folder:
            log.info("Settings: %s", ", ".join(f"{k} {v}" for k, v in config.to_dict().items() if v is not None))
            return _run(config, sources, team, folder, command, None, progress or Silent(), notices)


def resume_finetune(
    out: Path,
    progress: Progress | None = None,
    *,
    rendezvous_timeout: float = RENDEZVOUS_TIMEOUT,
    on_start: Callable[[Path], None] | None = None,
    fsdp: bool | None = None,
) -> FinetuneResult:
    """Go on with an interrupted run, with its own settings; the result is that of a run without interruption.

    Args:
        out: the run's folder.
        progress, rendezvous_timeout, on_start: as of `run_finetune`.
        fsdp: whether the tower is divided from now on; None: as before, where there are several processes.

    Raises:
        FinetuneError: if there is no such run, it is finished, its model or data have changed, or were in memory.
        OutputError: if it is still under way.
    """
    run = read_run(out)
    if fsdp is not None:
        run = {**run, "config": {**run["config"], "fsdp": fsdp}}
        check_processes(settings_of_run(run))
    config = settings_of_run(run)

    def take() -> OutputFolder:
        return ResumedFolder(out, option="--resume")

    with noticing() as notices, joined(choose_device(config.device), rendezvous_timeout) as team:
        if earlier := team.remembered():
            command = run["command"]
            return _start_again(earlier, config, NAMED, team, command, progress or Silent(), notices, on_start)
        with team.agree():
            read_unfinished(out)
        with _taken(team, take, on_start) as folder:
            with team.agree():
                before = read_unfinished(out)  # once more: it may have ended before the folder was ours
            if config.fsdp and team.size == 1:
                log.info("The tower was divided among processes (`fsdp`); this one goes on with the whole of it")
            return _run(config, NAMED, team, folder, before["command"], before, progress or Silent(), notices)


def _start_again(
    path: Path,
    config: FinetuneConfig,
    sources: Sources,
    team: Team,
    command: str,
    progress: Progress,
    notices: list[Notice],
    on_start: Callable[[Path], None] | None,
) -> FinetuneResult:
    """What the processes before these did not finish, in the folder that they had taken."""
    with _taken(team, lambda: take_again(path), on_start) as folder:
        with team.agree():
            before = begun_in(path)
        if before is not None and before["complete"]:
            return FinetuneResult(path, before if team.main else {**before, "complete": False})
        if before is not None:
            config = settings_of_run(before)
        return _run(config, sources, team, folder, command, before, progress, notices)


@dataclass(frozen=True)
class _RunFolder:
    """A run's folder as one of its processes sees it: only the main one has `output`, and writes."""

    path: Path
    output: OutputFolder | None


@contextmanager
def _taken(
    team: Team, take: Callable[[], OutputFolder], on_start: Callable[[Path], None] | None
) -> Iterator[_RunFolder]:
    """The folder of all processes, which the main one takes."""
    output = None
    with team.agree():
        if team.main:
            output = take()
    with output or nullcontext():
        path = team.share(output.path if output else None)
        if output:
            team.remember(path)
        if on_start and output:
            on_start(path)
        yield _RunFolder(path, output)


def _run(
    config: FinetuneConfig,
    sources: Sources,
    team: Team,
    folder: _RunFolder,
    command: str,
    before: RunRecord | None,
    progress: Progress,
    notices: list[Notice],
) -> FinetuneResult:
    """Load, train, finish; `before` is the record of the interrupted run that this one goes on with."""
    method, text_mode = check(config, sources)
    device = choose_device(config.device)
    progress = progress if team.main else Silent()
    with accelerated(config, device, folder.path) as accelerator:
        with team.agree():
            data = open_for(method, config, sources)
            loaded = sources.load(config, accelerator.device)
            for line in describe_model(loaded):
                log.info(line)
            torch.manual_seed(config.seed)  # low-rank weights begin at random
            model, objective = make_objective(config, method, text_mode, loaded, data, accelerator.autocast)
            images = TrainingImages(data, loaded.preprocess(), config, seen=method.sees_images())
            sampler = ResumableBatchSampler.of_run(config, data.train, team)
            validation = Validation(config, data, images, objective, team) if len(data.validation) else None
        trainer = Trainer(config, accelerator, model, objective, images, sampler, validation, folder.path)
        with _memory_advice(config):
            trainer.settle(images_of_a_pass(before) if before else None)
        with team.agree():
            run = start_record(config, command, loaded, data, trainer, device, notices, sources)
            if before is not None:
                check_unchanged(before, run, folder.path)
        team.require_the_same(run["base"]["sha256"], "model")
        team.require_the_same(run["dataset"]["fingerprint"], "data set")
        cached = images.cache(np.concatenate([data.train, data.validation]), progress, team)
        with team.agree():
            if folder.output:
                folder.output.write_files({RUN_NAME: to_json(run)})
                if test_images := choose_images(config, data):
                    log.info(announce(test_images))
        start_tracker(config, accelerator)
        with _memory_advice(config), explain_lost_decoders():
            trainer.train(progress, choose_decoders(config, cached, accelerator.device))
        if folder.output:
            _finish(config, sources, folder.output, run, loaded, data, trainer, progress)
            folder.output.write_files({RUN_NAME: to_json(run)})
            trainer.checkpoints.remove()
    return FinetuneResult(folder.path, run)


@contextmanager
def _memory_advice(config: FinetuneConfig) -> Iterator[None]:
    """Raise FinetuneError with a cure when memory does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if config.batch_size is None:
            cure = "even with one image a pass: use `grad_checkpointing`, or another `device`."
        else:
            cure = f"with `batch_size={config.batch_size}`: `batch_size=auto` divides the step into passes that fit."
        raise FinetuneError(f"Out of memory {cure}") from error


def _finish(
    config: FinetuneConfig,
    sources: Sources,
    output: OutputFolder,
    run: RunRecord,
    loaded: LoadedModel,
    data: TrainingData,
    trainer: Trainer,
    progress: Progress,
) -> None:
    """Export, score, describe and draw; writes all files but `run.json`, whose content is completed."""
    test_images = choose_images(config, data)
    base = None
    if test_images or config.wise_ft < 1:
        # Read or copied again: `loaded` was trained in place, and one from before would take memory all the while.
        base = sources.load(config, loaded.device)
    files = export(trainer.load_best(), loaded, base, config.wise_ft)
    output.write_files(files)
    tuned = _written(config, sources, output.path, files, loaded)  # what is scored is what was written
    run["resolved"]["exported_step"] = trainer.position.best_step or trainer.steps
    if trainer.step.rows is not None:
        run["resolved"]["micro_batch"] = trainer.step.rows
    run["training_seconds"] = round(trainer.position.seconds, 1)
    run["sha256"] = hash_file(output.path / (PROMPTS_NAME if PROMPTS_NAME in files else WEIGHTS_NAME))
    if PROMPTS_NAME in files:
        run["prompts"] = PROMPTS_NAME
    run["text"] = describe_text(files)
    if test_images and base:
        run["evaluation"] = evaluate(config, test_images, base, tuned, progress)
    else:
        run["evaluation"] = no_evaluation(config)
    run["complete"] = True
    title = f"{config.method} on {config.dataset}, from {config.model}"
    curves = draw_curves(read_metrics(output.path), title, trainer.position.best_step)
    output.write_files({"README.md": write_card(run, output.path.name).encode(), "curves.png": curves})


def _written(
    config: FinetuneConfig, sources: Sources, out: Path, files: Mapping[str, bytes], loaded: LoadedModel
) -> LoadedModel:
    """The model that was exported, read again: the base with the prompts, or the checkpoint."""
    if PROMPTS_NAME in files:
        return with_prompts(sources.load(config, loaded.device), read_prompts(out / PROMPTS_NAME))
    return load_model(f"local-dir:{out}", device=loaded.device)
