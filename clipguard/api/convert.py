"""`clipguard.convert`: a model of any format as an ordinary checkpoint folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from clipguard.core.checking import check_type
from clipguard.core.errors import ModelError
from clipguard.core.files.output import OutputFolder
from clipguard.models.convert import convert_files
from clipguard.models.description import describe_model
from clipguard.models.given import open_weights
from clipguard.models.loading import LoadedModel
from clipguard.models.sources.spec import add_to_files

log = logging.getLogger("clipguard")


def convert(
    source: str | Path | LoadedModel,
    out: str | Path,
    *,
    to: Literal["open_clip", "hf"] = "open_clip",
    base: str | None = None,
    normalization: str | None = None,
) -> Path:
    """Write a model as a checkpoint folder: safetensors, config and model card.

    Args:
        source: a model, as `--model` names it, or what `load_model` gave: its weights as they are in memory.
        out: the folder, which must not be there.
        to: "open_clip": what `local-dir:` names; "hf": a CLIPModel of transformers.
        base: for a file that holds an image tower alone: the model it was tuned from.
        normalization: instead of the model's own: clip, imagenet or M,M,M/S,S,S.

    Returns:
        The folder.

    Raises:
        ModelError: for a model that cannot be read or written so, or is scored with learned prompts; OutputError if the
            folder is there.
    """
    check_type("`to`", to, Literal["open_clip", "hf"])
    check_type("`out`", out, str | Path)
    if isinstance(source, (str, Path)):
        (source,) = add_to_files([str(source)], base, normalization)
    elif base is not None or normalization is not None:
        raise ModelError("`base` and `normalization` are for names; `load_model` settles them: give them there.")
    with OutputFolder(Path(out), whole=True) as folder:
        loaded = open_weights(source)
        for line in describe_model(loaded):
            log.info(line)
        folder.write_files(convert_files(loaded, to, in_memory=source is loaded))
    return Path(out)
