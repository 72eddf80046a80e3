"""`clipguard finetune`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipguard.cli.console import streams
from clipguard.cli.console.terminal import echo, echo_data
from clipguard.cli.options import (
    CONFIG_HELP_OF_RUNS,
    FILES_OF_MODELS,
    pop_settings,
    read_config,
    require_one_norm,
    takes,
)
from clipguard.core.errors import ClipguardError, ToldElsewhereError
from clipguard.core.settings import setting, settings_of
from clipguard.finetuning.config import FinetuneConfig

if TYPE_CHECKING:
    from clipguard.finetuning.output.result import FinetuneResult

EXAMPLES = """
**Examples**

`clipguard finetune --method tima` — the embedded model on an embedded data set, in minutes

`clipguard finetune --method fare --model ViT-B-32-quickgelu:openai --dataset imagenet/train --eps 4 --steps 20000`

`clipguard finetune --method "tima(margin=0.05)" --preset pmg-aft -m ViT-B-32-quickgelu:openai -d photos/`

`clipguard finetune --config settings.yaml --seed 1` — settings by name (`eps: 4`); the command line wins

`clipguard finetune --resume runs/20260102-030405-tima-tiny` — go on where it stopped, with its own settings

**Files**

an open_clip checkpoint (`open_clip_config.json`, `open_clip_model.safetensors`), its model card (`README.md`),
`run.json`, `metrics.jsonl` and `curves.png`. Score it with `clipguard bench --model local-dir:FOLDER`.
Methods that learn prompts (`apt`, `fap`) leave `prompts.safetensors` in place of the checkpoint, for
`clipguard bench --model MODEL --prompts FILE`.
"""
log = logging.getLogger("clipguard")


@dataclass(frozen=True)
class Launch:
    """What is said of a run on the command line alone."""

    workers: int = setting(
        1, "Processes on this machine that train together, each with a part of every batch.", low=1, metavar="N"
    )
    rendezvous_timeout: float = setting(
        60.0,
        "In which the other processes of a launch (torchrun and the like) must have come.",
        low=0,
        metavar="SECONDS",
        default_help="60",
    )
    format: Literal["table", "json"] = setting("table", "What stdout gets.", letter="-f")


@dataclass(frozen=True)
class Planned:
    """Whether the run is only planned."""

    plan: bool = setting(False, "Only say what the run would take: a few steps are timed (docs/planning.md).")
    price: float | None = setting(
        None, "Of this machine an hour, in any currency: a plan then says what the run would cost.", low=0
    )


LAUNCH, PLANNED = settings_of(Launch), settings_of(Planned)
SETTINGS = settings_of(FinetuneConfig) | FILES_OF_MODELS | LAUNCH | PLANNED


@takes(SETTINGS, config=False)
def finetune(
    given: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP_OF_RUNS)] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run to go on with; alone.")] = None,
) -> None:
    """Make a CLIP model robust: train it on adversarial images, and write an ordinary open_clip checkpoint."""
    from clipguard.cli.console.progress import RichProgress
    from clipguard.finetuning.checks import check
    from clipguard.finetuning.run import resume_finetune, run_finetune

    if resume is not None:
        how, fsdp = pop_settings(given, LAUNCH), given.pop("fsdp", None)
        if given or config:
            raise ClipguardError(
                f"--resume goes on with the run's own settings; leave out `{next(iter(given), 'config')}`."
            )
        _started_by_launcher(how["workers"], resume)
        timeout = how["rendezvous_timeout"]
        with RichProgress() as progress, _how_to_resume(resume) as at:
            result = resume_finetune(resume, progress, rendezvous_timeout=timeout, on_start=at, fsdp=fsdp)
    else:
        with _told_once():
            from_file = read_config(config, SETTINGS) if config else {}
            require_one_norm(config, from_file, given)
            how = pop_settings(given, LAUNCH | PLANNED, from_file)
            settings = _resolve(given, from_file)
            check(settings)
            if how["price"] is not None and not how["plan"]:
                raise ClipguardError("`price` is for a plan; add `plan`, or leave it out.")
        if how["plan"]:
            _tell_plan(settings, how)
            return
        _started_by_launcher(how["workers"], settings)
        timeout = how["rendezvous_timeout"]
        out, command = Path(settings.out) if settings.out else None, shlex.join(["clipguard", *sys.argv[1:]])
        with RichProgress() as progress, _how_to_resume() as at:
            result = run_finetune(settings, out, command, progress, rendezvous_timeout=timeout, on_start=at)
    if not result.run["complete"]:  # a process that only helped; the main one prints
        return
    if how["format"] == "json":
        echo_data(result.to_json())
    else:
        print_scores(result)


def _started_by_launcher(workers: int, of: FinetuneConfig | Path) -> None:
    """Where several processes are to train and this is the only one, start them; the command ends when they do.

    Args:
        workers: how many.
        of: the settings of the run, or its folder.
    """
    if workers == 1:
        return
    from clipguard.finetuning.output.record import read_run
    from clipguard.finetuning.processes.launch import read_launch
    from clipguard.finetuning.processes.local import end_with_launcher, start_processes
    from clipguard.finetuning.restart import settings_of_run

    launched = read_launch().size
    if launched == 1:
        settings = settings_of_run(read_run(of)) if isinstance(of, Path) else of
        settings.check_share(workers)
        raise typer.Exit(start_processes(workers, sys.argv[1:]))
    if launched != workers:
        raise ClipguardError(f"{launched} processes were launched already: leave `workers` out.")
    end_with_launcher()


def _tell_plan(settings: FinetuneConfig, how: dict[str, Any]) -> None:
    from clipguard.cli.console.plan_table import print_training_estimate
    from clipguard.cli.console.progress import RichProgress
    from clipguard.finetuning.planning import plan_finetune

    if settings.out is not None:
        raise ClipguardError("A `plan` writes no run; leave out `out`, or `plan`.")
    if how["workers"] != 1:
        raise ClipguardError("A `plan` is of one process; leave out `workers`, or `plan`.")
    with RichProgress() as progress:
        estimate = plan_finetune(settings, how["price"], progress)
    if how["format"] == "json":
        echo_data(estimate.to_json())
    else:
        print_training_estimate(estimate)


def _resolve(given: dict[str, Any], from_file: dict[str, Any]) -> FinetuneConfig:
    """The settings of the command line, over those of the file."""
    from clipguard.finetuning.settings import resolve
    from clipguard.models.sources.spec import add_to_files

    for layer in (from_file, given):
        base, normalization = layer.pop("base", None), layer.pop("normalization", None)
        if base or normalization:
            if "model" not in layer:
                raise ClipguardError("`base` and `normalization` go with `model`; add it, as FILE@BASE.")
            (layer["model"],) = add_to_files([layer["model"]], base, normalization)
    return resolve(given, from_file)


@contextmanager
def _told_once() -> Iterator[None]:
    """Of the processes that torchrun starts on one machine, let the first tell what is wrong with the command line."""
    try:
        yield
    except ClipguardError as error:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
            raise ToldElsewhereError(str(error)) from error
        raise


@contextmanager
def _how_to_resume(*folder: Path) -> Iterator[Callable[[Path], None]]:
    """Say how to go on when Ctrl-C leaves a run that can be resumed, given the folder that it takes, now or later."""
    folders = [*folder]
    try:
        yield folders.append
    except KeyboardInterrupt:
        from clipguard.finetuning.processes.launch import is_helper

        if is_helper():
            raise SystemExit(streams.INTERRUPTED) from None  # the main process tells
        if any((folder / "run.json").is_file() for folder in folders):
            echo(f"Stopped. Go on with: clipguard finetune --resume {shlex.quote(str(folders[0]))}", err=True)
        raise


def print_scores(result: FinetuneResult) -> None:
    """The accuracies before and after, on stdout."""
    from rich.console import Console
    from rich.table import Table

    from clipguard.cli.console.render import print_findings
    from clipguard.finetuning.output.card import eps_label, percent
    from clipguard.sanity.entries import alarms

    run = result.run
    found = run["evaluation"]
    table = Table(caption=f"Accuracy in % on {found['images']}, with 95 % intervals.", caption_justify="left")
    for column in ("model", "clean", f"PGD-10, {eps_label(run['config'])}"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for who, score in found["scores"].items():
        table.add_row(who, percent(score["clean"]), percent(score["robust"]))
    console = Console()
    if found["scores"]:
        console.print(table)
        print_findings(console, alarms(found["findings"]))
    else:
        console.print(f"Not evaluated: {found['images'].removeprefix('none: ')}.", highlight=False)
    made = f"local-dir:{result.out}"
    if "prompts" in run:
        model, prompts = shlex.quote(run["config"]["model"]), shlex.quote(str(result.out / run["prompts"]))
        made = f"Score it with: clipguard bench --model {model} --prompts {prompts}"
    console.print(made, soft_wrap=True, highlight=False)
    log.info("Trained in %.0f s; look at %s", run["training_seconds"], result.out / "curves.png")
