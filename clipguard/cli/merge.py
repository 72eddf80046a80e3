"""`clipguard merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipguard.cli.console.terminal import echo

EXAMPLES = """
**Examples**

`clipguard merge tiny local-dir:runs/tima --alpha 0.7 --out runs/tima-70`

`clipguard merge ViT-B-32-quickgelu:openai local-dir:runs/fare --alpha 0.5 --out half`
"""


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
