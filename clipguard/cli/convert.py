"""`clipguard convert` and `clipguard merge`: checkpoints of other checkpoints."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clipguard.cli.console.terminal import echo
from clipguard.cli.options import FILES_OF_MODELS

EXAMPLES = """
**Examples**

`clipguard convert tecoa.pth.tar --out tecoa` — with OpenAI's text tower, which that layout implies

`clipguard convert fare_eps_4.pt --base ViT-L-14-quickgelu:openai --out fare4`

`clipguard convert local-dir:runs/tima --to hf --out tima-hf`
"""
MERGE_EXAMPLES = """
**Examples**

`clipguard merge tiny local-dir:runs/tima --alpha 0.7 --out runs/tima-70`

`clipguard merge ViT-B-32-quickgelu:openai local-dir:runs/fare --alpha 0.5 --out half`
"""


class Layout(str, Enum):
    """What is written."""

    open_clip = "open_clip"
    hf = "hf"


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model, as `--model` names it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    base: Annotated[str | None, typer.Option(help=FILES_OF_MODELS["base"].full_help)] = None,
    normalization: Annotated[str | None, typer.Option(help=FILES_OF_MODELS["normalization"].full_help)] = None,
    to: Annotated[
        Layout, typer.Option(help="open_clip: a local-dir: folder; hf: a CLIPModel of transformers.")
    ] = Layout.open_clip,
) -> None:
    """Write a model of any format as an ordinary checkpoint folder: safetensors, config and model card."""
    from clipguard.api.convert import convert as convert_model

    convert_model(source, out, to=to.value, base=base, normalization=normalization)
    echo(f"local-dir:{out}")


def merge(
    base: Annotated[str, typer.Argument(help="The model that was fine-tuned, as `--model` names it.")],
    tuned: Annotated[str, typer.Argument(help="What became of it, as in local-dir:FOLDER.")],
    alpha: Annotated[float, typer.Option(help="Share of the tuned weights, in 0 ... 1.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the checkpoint.")],
) -> None:
    """Write the model between two, (1 - alpha) BASE + alpha TUNED (WiSE-FT, Wortsman et al. 2022)."""
    from clipguard.finetuning.merge import merge as merge_models

    merge_models(base, tuned, alpha, out)
    echo(f"local-dir:{out}")
