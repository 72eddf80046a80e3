"""`clipguard.finetune`: a fine-tuning run from Python."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

from clipguard.api.objects.training import named_sources
from clipguard.api.options import FinetuneOptions
from clipguard.core.checking import check_type
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.output.result import FinetuneResult
from clipguard.finetuning.run import run_finetune
from clipguard.finetuning.settings import resolve


def finetune(method: str = "tima", *, out: str | Path, **settings: Unpack[FinetuneOptions]) -> FinetuneResult:
    """Fine-tune a model into a new folder, and score it before and after.

    An interrupted run goes on with `clipguard finetune --resume`, unless it was given objects in place of names.

    Args:
        method: as `clipguard list methods` shows, or NAME(option=value,...).
        out: the folder, which must not be there.
        settings: by name: `model`, `dataset`, `preset`, `steps`, `lr` ... `eps` and `step_size` as numbers are pixels
            of [0,1] (`4 / 255`), as texts what the command line takes (`"4"`, `"4/255"`). `model` is a name or what
            `load_model` gave, which stays as it is. `dataset` is a name, what `load_dataset` gave, a
            `datasets.Dataset`, or (images, labels, class_names); all of an object is trained on, but for the images
            set apart to choose the checkpoint.

    Raises:
        ClipguardError: for anything that cannot be run, before anything is written.
    """
    check_type("`out`", out, str | Path, FinetuneError)
    names, sources = named_sources(settings)
    config = resolve({"method": method, "out": str(out), **names})
    shown = {name: value if value is names[name] else InMemory(names[name]) for name, value in settings.items()}
    command = f"clipguard.finetune({method!r}, out={str(out)!r}, **{shown!r})"
    return run_finetune(config, Path(out), command, sources=sources)


class InMemory(str):
    """The name of an object, which a command line shows as what no name is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self} in memory>"
