"""What was trained as the files of an open_clip checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from clipguard.finetuning.merge import interpolate
from clipguard.finetuning.tuned.lora import merge_changes
from clipguard.finetuning.tuned.prompt_text import PromptText
from clipguard.finetuning.tuned.tuned_model import TunedModel
from clipguard.models.export import checkpoint_files
from clipguard.models.loading import LoadedModel
from clipguard.models.prompts.learned import PROMPTS_NAME
from clipguard.models.text.tuned import ORIGINAL_FILE, TEXT_FILE

log = logging.getLogger("clipguard")


def export(tuned: TunedModel, loaded: LoadedModel, base: LoadedModel | None, wise_ft: float) -> dict[str, bytes]:
    """The files of the checkpoint: content by name. Where prompts are what was trained, it is theirs alone.

    Args:
        tuned: what was trained, with the weights to export; low-rank changes and singular values become part of them.
        loaded: the model it was made from, which takes the tuned weights.
        base: the model as it came, to mix with.
        wise_ft: share of the tuned weights, in [0,1]; below 1 it needs `base`.
    """
    visual = tuned.image.visual
    if isinstance(tuned.text, PromptText):
        return {PROMPTS_NAME: tuned.text.learned().to_bytes()}
    merge_changes(visual)
    loaded.model.visual = visual
    files: dict[str, bytes] = {}
    if tuned.text is not None:
        files = tuned.text.export(loaded.model)
    elif loaded.text_map is not None:
        files = {TEXT_FILE: loaded.text_map.to_bytes()}
    state: Mapping[str, Tensor] = loaded.model.state_dict()
    if wise_ft < 1:
        assert base is not None
        state = interpolate(base.model.state_dict(), state, wise_ft)
        if TEXT_FILE in files:
            log.warning("The tuned text is not in the weights, so `wise_ft` leaves it as it is")
    return {**checkpoint_files(loaded, state), **files}


def describe_text(files: Mapping[str, bytes]) -> str:
    """What became of the text, for the model card."""
    if PROMPTS_NAME in files:
        return "The prompts are learned, `--templates` has no effect on them; all weights are the base model's."
    if TEXT_FILE in files:
        return f"Its text is tuned, by `{TEXT_FILE}`: clipguard applies it, open_clip loads the original text."
    if ORIGINAL_FILE in files:
        return "Its text is tuned, for any class name; `--text original` scores it with the base model's."
    return ""
