"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from clipguard.errors import ClipguardError

Eps = Annotated[
    list[str] | None,
    typer.Option("--eps", help="Budgets: 1,4,8 in units of 1/255 for linf, 0.25,0.5,1 plain for l2."),
]
Norm = Annotated[str, typer.Option(help="linf or l2.")]
Seed = Annotated[int, typer.Option(help="Of the subset and of every attack.")]
BatchSize = Annotated[
    str, typer.Option("--batch-size", help="Images in flight, or auto: what fits. Halved if memory runs out.")
]
Precision = Annotated[
    str,
    typer.Option(
        help="Of the search: float32, tf32, bfloat16, or auto: bfloat16 on CUDA, else float32. Every success is "
        "checked in float32."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Search with torch.compile: a minute or so of start-up, then faster passes.")
]
Templates = Annotated[
    str, typer.Option(help="single, ensemble, a prompt with {} for the class, or a file with one such prompt a line.")
]
Split = Annotated[str | None, typer.Option(help="Default: test, else validation, else the only one.")]
ImageColumn = Annotated[str | None, typer.Option("--image-column", help="If it cannot be told.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="If it cannot be told.")]
Resolution = Annotated[
    str,
    typer.Option(help="model: perturb the resized image; native: perturb the original pixels, resize in the model."),
]
Quantize = Annotated[bool, typer.Option("--quantize", help="Adversarial images must be 8-bit images.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]


def split_attacks(values: list[str]) -> list[str]:
    """Split at commas outside parentheses: `pgd-10,apgd-ce(iterations=50,restarts=2)` is two attacks."""
    return [part.strip() for value in values for part in re.split(r",(?![^(]*\))", value) if part.strip()]


def parse_batch_size(text: str) -> int | None:
    """A number, or None for "auto"."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ClipguardError(f"--batch-size {text!r} must be a whole number of at least 1, or auto.")
    return int(text)


def parse_n_samples(text: str) -> int | None:
    """A number, or None for "all"."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ClipguardError(f"--n-samples {text!r} must be a whole number of at least 1, or all.")
    return int(text)


def default_folder(name: str, prefix: str = "") -> Path:
    """`runs/20260102-030405-tiny`, or with a prefix such as `attack-` before the name, made unique."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{prefix}{slug or 'run'}"
    candidates = (Path("runs") / (stem if i == 0 else f"{stem}-{i}") for i in range(1000))
    return next(path for path in candidates if not path.exists())
