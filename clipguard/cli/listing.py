"""`clipguard list`: what can be named."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

EXAMPLES = """
**Examples**

`clipguard list datasets`

`clipguard list models | grep ViT-B-32`
"""


class What(str, Enum):
    """What to list."""

    models = "models"
    datasets = "datasets"
    attacks = "attacks"
    methods = "methods"


def show(what: Annotated[What, typer.Argument(help="models, datasets, attacks or methods")]) -> None:
    """List the models, data sets, attacks or fine-tuning methods that can be named."""
    {What.models: _models, What.datasets: _datasets, What.attacks: _attacks, What.methods: _methods}[what]()


def _methods() -> None:
    from dataclasses import fields

    from clipguard.finetuning.methods import METHODS

    for name, kind in METHODS.items():
        presets = f" [--preset {', '.join(kind.presets)}]" if kind.presets else ""
        typer.echo(f"{name:<10} {kind.summary}{presets}")
    typer.echo("\nOptions, as in --method 'tima(margin=0.05,text=encoder)', and their defaults:")
    for name, kind in METHODS.items():
        defaults = ", ".join(f"{field.name}={field.default}" for field in fields(kind))
        typer.echo(f"{name:<10} {defaults or 'none'}")


def _attacks() -> None:
    from clipguard.attacks.recipes import ATTACKS, DESCRIPTIONS, STEPPED, options

    for name, description in DESCRIPTIONS.items():
        typer.echo(f"{name:<16} {description}")
    typer.echo("\nOptions, as in --attack 'apgd-ce(iterations=50,restarts=2)', and their defaults:")
    for name, kind in ATTACKS.items():
        defaults = ", ".join(f"{k}={v}" for k, v in options(kind()).items() if name not in STEPPED or k != "iterations")
        typer.echo(f"{name + '-K' if name in STEPPED else name:<16} {defaults or 'none'}")
    typer.echo("every attack     eot=1: forward passes averaged an evaluation, for randomised models")
    typer.echo('\nor a recipe file, FILE.toml or FILE.yaml: stages = ["apgd-ce(restarts=5)", "square"]')


def _datasets() -> None:
    from clipguard.data import list_datasets

    for d in list_datasets():
        typer.echo(
            f"{d.name:<16} {d.classes:>3} classes, {d.test:>4} test and {d.train:>4} train images: {d.description}"
        )
    typer.echo(
        "\nor a path: file.parquet, a folder of parquet or arrow files, class/image.jpg folders, webdataset .tar files;"
        "\nor hf:ORG/NAME[@SPLIT] from the Hugging Face hub"
    )


def _models() -> None:
    from clipguard.models import list_models

    for name in list_models():
        typer.echo(name)
    typer.echo("or ARCH:path/to/weights.{pt,pth,bin,safetensors}, hf-hub:ORG/REPO, local-dir:FOLDER", err=True)
