"""`clipguard.finetune`: a fine-tuning run from Python."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

from clipguard.api.options import FinetuneOptions
from clipguard.core.checking import check_type
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.output.result import FinetuneResult
from clipguard.finetuning.run import run_finetune
from clipguard.finetuning.settings import resolve


def finetune(method: str = "tima", *, out: str | Path, **settings: Unpack[FinetuneOptions]) -> FinetuneResult:
    """Fine-tune a model into a new folder, and score it before and after.

    An interrupted run goes on with `clipguard finetune --resume`.

    Args:
        method: as `clipguard list methods` shows, or NAME(option=value,...).
        out: the folder, which must not be there.
        settings: by name: `model`, `dataset`, `preset`, `steps`, `lr` ... `eps` and `step_size` as numbers are pixels
            of [0,1] (`4 / 255`), as texts what the command line takes (`"4"`, `"4/255"`).

    Raises:
        ClipguardError: for anything that cannot be run, before anything is written.
    """
    check_type("`out`", out, str | Path, FinetuneError)
    config = resolve({"method": method, "out": str(out), **settings})
    return run_finetune(config, Path(out), f"clipguard.finetune({method!r}, out={str(out)!r}, **{settings!r})")
