"""`clipguard doctor`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from clipguard.benchmark.plan import DEFAULT_ATTACK
from clipguard.cli import options
from clipguard.cli.console.terminal import echo_data
from clipguard.cli.options import one, parse_batch_size, parse_n_samples, split_attacks
from clipguard.core.errors import ClipguardError

EXAMPLES = """
**Examples**

`clipguard doctor` — the embedded model on 32 embedded images

`clipguard doctor --model local-dir:runs/tuned --dataset photos/ --transfer-from ViT-B-32-quickgelu:openai`

`clipguard doctor -m weights.pt -d test.parquet --attack pgd-10 --eps 1 --format json`

Exit codes: 0 no failure (warnings may be there), 1 a failure, 2 bad input. docs/doctor.md explains every check.
"""
FAILURE = 1
DEFAULT_MODEL, DEFAULT_DATASET, DEFAULT_N = "tiny", "emoji-animals", "32"
DEFAULT_EPS = {"linf": "4", "l2": "0.5"}


class Format(str, Enum):
    """What goes to stdout."""

    table = "table"
    json = "json"


def doctor(
    model: Annotated[
        list[str] | None,
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
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A name of `list datasets`, a .parquet or .tar file, a folder, hf:ORG/NAME[@SPLIT], or a .toml file. "
            f"Default: {DEFAULT_DATASET}.",
        ),
    ] = None,
    transfer_from: Annotated[
        str | None,
        typer.Option(
            "--transfer-from", metavar="MODEL", help="Another model, whose adversarial images are tried on this one."
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(help="Budget: in units of 1/255 for linf, plain for l2. Default: 4, or 0.5 for l2."),
    ] = None,
    norm: options.Norm = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            "-a",
            help="The attack to examine, as `clipguard list attacks` shows, or a recipe file. "
            f"Default: {DEFAULT_ATTACK}.",
        ),
    ] = None,
    n_samples: Annotated[
        str | None,
        typer.Option(
            "--n-samples", "-n", help=f"A seeded, class-stratified subset of so many, or all. Default: {DEFAULT_N}."
        ),
    ] = None,
    data_root: options.DataRoot = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = "auto",
    templates: options.Templates = None,
    classes: options.Classes = None,
    class_names: options.ClassNames = None,
    duplicate_names: options.DuplicateNames = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    resolution: options.Resolution = None,
    resize: options.Resize = None,
    decode: options.Decode = None,
    logit_scale: options.LogitScale = None,
    device: options.Device = "auto",
    output_format: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.table,
) -> None:
    """Tell whether robustness is real: gradients, noise, black-box attacks, large budgets and what else goes wrong."""
    from clipguard.benchmark.protocols import make_plan
    from clipguard.models.source import add_to_files

    plan = make_plan(
        add_to_files([one("doctor", "--model", model, DEFAULT_MODEL)], base, normalization),
        [one("doctor", "--dataset", dataset, DEFAULT_DATASET)],
        **options.given(
            norm=norm,
            templates=templates,
            class_names=class_names,
            duplicate_names=duplicate_names,
            resolution=resolution,
            resize=resize,
            decode=decode,
            logit_scale=logit_scale,
        ),
        attacks=(one("doctor", "--attack", split_attacks(attack or []), DEFAULT_ATTACK),),
        eps=eps or [DEFAULT_EPS.get(norm or "linf", "")],
        n_samples=parse_n_samples(n_samples or DEFAULT_N),
        seed=seed,
        batch_size=parse_batch_size(batch_size),
        device=device,
        split=split,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
        data_root=data_root,
    )
    if len(plan.datasets) > 1 or len(plan.eps) > 1:
        raise ClipguardError("`clipguard doctor` takes one data set and one --eps; name one of each.")
    from clipguard.benchmark.diagnosis import diagnose
    from clipguard.cli.console.progress import RichProgress
    from clipguard.cli.console.render import print_diagnosis

    with RichProgress() as progress:
        diagnosis = diagnose(plan, transfer_from, progress)
    if output_format is Format.json:
        echo_data(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis)
    if diagnosis.verdict == "failure":
        raise typer.Exit(FAILURE)
