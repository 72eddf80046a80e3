"""`clipguard finetune`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipguard.cli import options
from clipguard.cli.console.terminal import echo, echo_data
from clipguard.core.errors import ClipguardError, ToldElsewhereError

if TYPE_CHECKING:
    from clipguard.finetuning.config import FinetuneConfig
    from clipguard.finetuning.run import FinetuneResult

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
"""
log = logging.getLogger("clipguard")
Text = str | None
Whole = int | None
Real = float | None
# The others are fields of FinetuneConfig, or go into its `model`.
NO_SETTINGS = ("config", "resume", "rendezvous_timeout", "output_format")


class Format(str, Enum):
    """What goes to stdout."""

    table = "table"
    json = "json"


def finetune(
    method: Annotated[Text, typer.Option(help="As `list methods` shows, or NAME(option=1). Default: tima.")] = None,
    model: Annotated[
        Text,
        typer.Option(
            "--model",
            "-m",
            help="tiny, ARCH:TAG, FILE, ARCH:FILE, FILE@BASE, hf-hub:ORG/REPO, local-dir:FOLDER or a name of "
            "`list models`. Default: tiny.",
        ),
    ] = None,
    base: options.Base = None,
    normalization: options.Normalization = None,
    dataset: Annotated[
        Text,
        typer.Option(
            "--dataset",
            "-d",
            help="A name of `list datasets`, a .parquet or .tar file, a folder, or hf:ORG/NAME[@SPLIT]; methods "
            "without labels take any folder of images. Default: emoji-animals.",
        ),
    ] = None,
    data_root: options.DataRoot = None,
    preset: Annotated[
        Text, typer.Option(help="Settings by name, as `list methods` shows, or none. Default for tiny: embedded.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file of settings, named as the options.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run to go on with; alone.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the files. Default: runs/TIME-METHOD-MODEL.")
    ] = None,
    steps: Annotated[Whole, typer.Option(help="Optimiser steps.")] = None,
    epochs: Annotated[Real, typer.Option(help="Instead of steps. Default: 2 (tiny: 300 steps).")] = None,
    batch_size: Annotated[
        Whole, typer.Option("--batch-size", help="Images of one pass on one device. Default: 128 (tiny: 64).")
    ] = None,
    accumulate: Annotated[Whole, typer.Option(help="Passes a step. Default: 1.")] = None,
    lr: Annotated[Real, typer.Option(help="Peak learning rate of the image tower. Default: 1e-5 (tiny: 5e-4).")] = None,
    eps: Annotated[
        Text, typer.Option(help="Budget: in units of 1/255 for linf, plain for l2. Default: 4 (tiny: 8).")
    ] = None,
    norm: Annotated[Text, typer.Option(help="linf or l2. Default: linf.")] = None,
    attack_steps: Annotated[
        Whole, typer.Option("--attack-steps", help="Of the training attack, PGD. Default: 10 (tiny: 3).")
    ] = None,
    step_size: Annotated[
        Text,
        typer.Option("--step-size", help="Of the attack, in the units of --eps. Default: 2.5 eps / steps."),
    ] = None,
    random_start: Annotated[
        bool | None, typer.Option("--random-start/--no-random-start", help="Of the attack. Default: yes.")
    ] = None,
    train: Annotated[
        Text,
        typer.Option(help="visual: the image tower; last-N: its last N layer groups; all: text, too. Default: visual."),
    ] = None,
    lora: Annotated[Whole, typer.Option(help="Train low-rank changes of this rank only. Default: 0, no.")] = None,
    optimizer: Annotated[Text, typer.Option(help="adamw or sgd. Default: adamw.")] = None,
    momentum: Annotated[Real, typer.Option(help="Of SGD. Default: 0.9.")] = None,
    weight_decay: Annotated[Real, typer.Option("--weight-decay", help="Default: 1e-4.")] = None,
    warmup_steps: Annotated[Whole, typer.Option("--warmup-steps", help="Default: 5 % of the steps.")] = None,
    schedule: Annotated[Text, typer.Option(help="cosine or constant, after the warm-up. Default: cosine.")] = None,
    grad_clip: Annotated[
        Real, typer.Option("--grad-clip", help="Largest norm of the gradient. Default: 0, no limit.")
    ] = None,
    ema: Annotated[
        Real, typer.Option(help="Decay of a moving average of the weights, which is then the result. Default: 0, none.")
    ] = None,
    augment: Annotated[
        Text, typer.Option(help="none, or standard: crop and mirror. Default: none (tiny: standard).")
    ] = None,
    wise_ft: Annotated[
        Real, typer.Option("--wise-ft", help="Share of tuned weights in the result, the rest original. Default: 1.")
    ] = None,
    precision: Annotated[Text, typer.Option(help="float32, bfloat16 or auto: bfloat16 on CUDA. Default: auto.")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu, cuda, cuda:1. Default: auto.")] = None,
    seed: Annotated[Whole, typer.Option(help="Of everything random. Default: 0.")] = None,
    templates: Annotated[
        Text,
        typer.Option(help="single, ensemble, a prompt with {}, or a file with one prompt a line. Default: single."),
    ] = None,
    split: Annotated[Text, typer.Option(help="To train on. Default: train, else all of a set without splits.")] = None,
    classes: Annotated[Text, typer.Option(help="Class names between commas, or a file of them.")] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    n_samples: Annotated[
        Whole, typer.Option("--n-samples", "-n", help="Images to use, a stratified subset. Default: all.")
    ] = None,
    val_fraction: Annotated[
        Real, typer.Option("--val-fraction", help="Of them, set apart to choose the best checkpoint. Default: 0.1.")
    ] = None,
    eval_every: Annotated[
        Whole, typer.Option("--eval-every", help="Steps between validations. Default: a fifth of the run.")
    ] = None,
    eval_samples: Annotated[
        Whole, typer.Option("--eval-samples", help="Images a validation or the final test takes at most. Default: 500.")
    ] = None,
    evaluation: Annotated[
        bool | None,
        typer.Option(
            "--evaluation/--no-evaluation", help="Score the model before and after, when it is trained. Default: yes."
        ),
    ] = None,
    save_every: Annotated[
        Whole, typer.Option("--save-every", help="Steps between checkpoints. Default: with every validation.")
    ] = None,
    workers: Annotated[Whole, typer.Option(help="Processes that make batches. Default: as many as pay.")] = None,
    tracker: Annotated[Text, typer.Option(help="none, tensorboard or wandb. Default: none.")] = None,
    rendezvous_timeout: Annotated[
        float,
        typer.Option(
            "--rendezvous-timeout",
            min=0,
            metavar="SECONDS",
            help="In which the other processes of a launch (torchrun and the like) must have come.",
        ),
    ] = 60.0,
    output_format: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.table,
) -> None:
    """Make a CLIP model robust: train it on adversarial images, and write an ordinary open_clip checkpoint."""
    given = {name: value for name, value in locals().items() if name not in NO_SETTINGS and value is not None}
    from clipguard.cli.console.progress import RichProgress
    from clipguard.finetuning.run import check, resume_finetune, run_finetune

    if resume is not None:
        if given or config:
            first = next(iter(given), "config").replace("_", "-")
            raise ClipguardError(f"--resume goes on with the run's own settings; leave out --{first}.")
        with RichProgress() as progress, _how_to_resume() as at:
            result = resume_finetune(resume, progress, rendezvous_timeout=rendezvous_timeout, on_start=at)
    else:
        with _told_once():
            settings = _resolve(given, config)
            check(settings)
        out, command = Path(settings.out) if settings.out else None, shlex.join(["clipguard", *sys.argv[1:]])
        with RichProgress() as progress, _how_to_resume() as at:
            result = run_finetune(settings, out, command, progress, rendezvous_timeout=rendezvous_timeout, on_start=at)
    if not result.run["complete"]:  # a process that only helped; the main one prints
        return
    if output_format is Format.json:
        echo_data(result.to_json())
    else:
        print_scores(result)


def _resolve(given: dict[str, Any], config: Path | None) -> FinetuneConfig:
    """The settings of the command line, over those of the file."""
    from clipguard.finetuning.settings import resolve
    from clipguard.models.source import add_to_files

    base, normalization = given.pop("base", None), given.pop("normalization", None)
    if base or normalization:
        if "model" not in given:
            raise ClipguardError("--base and --normalization go with --model; add it (in a file: model: FILE@BASE).")
        (given["model"],) = add_to_files([given["model"]], base, normalization)
    given |= {name: str(given[name]) for name in ("out", "data_root") if name in given}
    return resolve(given, config)


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
def _how_to_resume() -> Iterator[Callable[[Path], None]]:
    """Say how to go on when Ctrl-C leaves a run that can be resumed, given the folder that it takes."""
    folders: list[Path] = []
    try:
        yield folders.append
    except KeyboardInterrupt:
        if any((folder / "run.json").is_file() for folder in folders):
            echo(f"Stopped. Go on with: clipguard finetune --resume {shlex.quote(str(folders[0]))}", err=True)
        raise


def print_scores(result: FinetuneResult) -> None:
    """The accuracies before and after, on stdout."""
    from rich.console import Console
    from rich.table import Table

    from clipguard.cli.console.render import print_findings
    from clipguard.finetuning.card import budget, percent
    from clipguard.sanity.entries import alarms

    run = result.run
    found = run["evaluation"]
    table = Table(caption=f"Accuracy in % on {found['images']}, with 95 % intervals.", caption_justify="left")
    for column in ("model", "clean", f"PGD-10, {budget(run['config'])}"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for who, score in found["scores"].items():
        table.add_row(who, percent(score["clean"]), percent(score["robust"]))
    console = Console()
    if found["scores"]:
        console.print(table)
        print_findings(console, alarms(found["findings"]))
    else:
        console.print(f"Not evaluated: {found['images'].removeprefix('none: ')}.", highlight=False)
    console.print(f"local-dir:{result.out}", soft_wrap=True, highlight=False)
    log.info("Trained in %.0f s; look at %s", run["training_seconds"], result.out / "curves.png")
