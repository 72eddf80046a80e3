"""`clipguard convert`."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clipguard.cli import options
from clipguard.cli.console.terminal import echo

EXAMPLES = """
**Examples**

`clipguard convert tecoa.pth.tar --out tecoa` — with OpenAI's text tower, which that layout implies

`clipguard convert fare_eps_4.pt --base ViT-L-14-quickgelu:openai --out fare4`

`clipguard convert local-dir:runs/tima --to hf --out tima-hf`
"""
log = logging.getLogger("clipguard")


class Layout(str, Enum):
    """What is written."""

    open_clip = "open_clip"
    hf = "hf"


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model, as `--model` names it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    base: options.Base = None,
    normalization: options.Normalization = None,
    to: Annotated[
        Layout, typer.Option(help="open_clip: a local-dir: folder; hf: a CLIPModel of transformers.")
    ] = Layout.open_clip,
) -> None:
    """Write a model of any format as an ordinary checkpoint folder: safetensors, config and model card."""
    from clipguard.core.output import OutputFolder
    from clipguard.models.convert import convert_files
    from clipguard.models.description import describe_model
    from clipguard.models.loading import load_model
    from clipguard.models.source import add_to_files

    (spec,) = add_to_files([source], base, normalization)
    with OutputFolder(out, whole=True) as folder:
        loaded = load_model(spec)
        for line in describe_model(loaded):
            log.info(line)
        folder.write_files(convert_files(loaded, to.value))
    echo(f"local-dir:{out}")
