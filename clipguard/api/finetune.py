"""`clipguard.finetune`: a fine-tuning run from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipguard.core.checking import check_type
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.run import FinetuneResult, run_finetune
from clipguard.finetuning.settings import resolve


def finetune(method: str = "tima", *, out: str | Path, **settings: Any) -> FinetuneResult:
    """Fine-tune a model into the new folder `out`, and score it before and after.

    `settings` are fields of `FinetuneConfig` by name: `model`, `dataset`, `preset`, `steps`, `eps` (units of 1/255 for
    linf), `lr` ... An interrupted run goes on with `clipguard finetune --resume`.
    Raises ClipguardError for anything that cannot be run, before anything is written.
    """
    check_type("out", out, str | Path, FinetuneError)
    config = resolve({"method": method, "out": str(out), **settings})
    return run_finetune(config, Path(out), f"clipguard.finetune({method!r}, out={str(out)!r}, **{settings!r})")
