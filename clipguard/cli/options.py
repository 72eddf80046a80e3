"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipguard.core.errors import ClipguardError
from clipguard.core.spec import split_attacks as split_attacks

Eps = Annotated[
    list[str] | None,
    typer.Option("--eps", help="Budgets: 1,4,8 in units of 1/255 for linf, 0.25,0.5,1 plain for l2."),
]
Norm = Annotated[str | None, typer.Option(help="linf or l2. Default: linf.")]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="Settings of a family of papers (`list protocols`): attack, eps, images, prompts, names, resolution. "
        "Options beside it win, and the results say so."
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder with copies of named data sets, DIR/<name>. Default: $CLIPGUARD_DATA."),
]
Seed = Annotated[int, typer.Option(help="Of the subset and of every attack.")]
BatchSize = Annotated[
    str, typer.Option("--batch-size", help="Images in flight, or auto: what fits. Halved if memory runs out.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of the search: float32, tf32, bfloat16, or auto: bfloat16 on CUDA, else float32. Every success is "
        "checked in float32. Default: auto."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Search with torch.compile: a minute or so of start-up, then faster passes.")
]
Templates = Annotated[
    str | None,
    typer.Option(
        help="single, ensemble, a prompt with {} for the class, or a file with one such prompt a line. "
        "Default: ensemble."
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help='Names between commas ("cat,dog"), or a file of them: one a line in label order, or a list or table '
        "that can mean one thing only. Default: the data's."
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        help="source: as they come with the data; tecoa: as TeCoA's papers write them. Default: source.",
    ),
]
DuplicateNames = Annotated[
    bool | None,
    typer.Option(
        "--duplicate-names", help="Allow two classes of one name, and keep those of published lists (ImageNet)."
    ),
]
Split = Annotated[str | None, typer.Option(help="Default: test, else validation, else the only one.")]
ImageColumn = Annotated[str | None, typer.Option("--image-column", help="If it cannot be told.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="If it cannot be told.")]
Resolution = Annotated[
    str | None,
    typer.Option(
        help="model: perturb the resized image; native: perturb the original pixels, resize in the model; mixed: "
        "native for CIFAR and STL, model for others. Default: model."
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        help="model: as the model does; crop256: shorter edge to 256/224 of the model's size, bilinear, centre crop; "
        "crop256-squash: the same, but CIFAR and STL squashed. Default: model."
    ),
]
Decode = Annotated[
    str | None,
    typer.Option(
        help="upright: EXIF rotation applied, transparency over white, 16 bits scaled; plain: as PIL's "
        'convert("RGB"), like other code of the field. Default: upright.'
    ),
]
LogitScale = Annotated[
    float | None, typer.Option("--logit-scale", help="Factor on the cosines. Default: the model's own.")
]
Quantize = Annotated[bool, typer.Option("--quantize", help="Adversarial images must be 8-bit images.")]
Base = Annotated[
    str | None,
    typer.Option(
        help="For weight files that hold an image tower alone: the model it was tuned from, as ARCH:TAG, ARCH:FILE, "
        "local-dir:FOLDER or tiny. For one of several files, write --model FILE@BASE."
    ),
]
Normalization = Annotated[
    str | None,
    typer.Option(
        help="Instead of the model's own: clip, imagenet or M,M,M/S,S,S. Also --model MODEL#normalization=..."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]


Store = Annotated[
    Path, typer.Option("--store", help="Folder of stored results: what is there is not computed again (docs/store.md).")
]
NoStore = Annotated[bool, typer.Option("--no-store", help="Compute everything, and keep only the result.")]
Probes = Annotated[
    bool,
    typer.Option(
        "--probes/--no-probes", help="Sanity checks that take passes of their own, over 8 images of each data set."
    ),
]
DEFAULT_STORE = Path("runs/store")


def given(**values: Any) -> dict[str, Any]:
    """The options that were given: those left out are None, and a protocol or a default decides."""
    return {name: value for name, value in values.items() if value is not None}


def one(command: str, option: str, values: list[str] | None, default: str) -> str:
    """The one value of an option that a command takes only once."""
    if values and len(values) > 1:
        raise ClipguardError(
            f"{option} names {len(values)} things; `clipguard {command}` takes one, `clipguard bench` several."
        )
    return values[0] if values else default


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
