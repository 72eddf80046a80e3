"""A prompt file -> learned prompts -> a model that is scored with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from torch import Tensor

from clipguard.core.errors import ModelError, first_line
from clipguard.models.checkpoint.reader import check_finite, hash_file, read_metadata, read_plain
from clipguard.models.loading import LoadedModel, hash_tensors
from clipguard.models.module_model import FORMAT
from clipguard.models.prompts.learned import METADATA, PROMPTS_NAME, LearnedPrompts, PromptBase, prompts_of
from clipguard.models.prompts.text import Layout, Position, text_tower
from clipguard.models.prompts.vision import FixedVisionPrompts, vision_size

POSITION = "#position="  # at the end of a file's name, for files that do not say it
log = logging.getLogger("clipguard")


def split_prompts(spec: str) -> tuple[Path, Position | None]:
    """A file and, after `#position=`, where its context stands.

    Raises:
        ModelError: for a position that there is none of.
    """
    path, given, position = spec.partition(POSITION)
    if given and position not in get_args(Position):
        raise ModelError(f"`prompts`: {position!r} is no position; use {', '.join(get_args(Position))}.")
    return Path(path).expanduser(), cast(Position, position) if given else None


def prompts_label(spec: str) -> str:
    """What a prompt file is called in tables: `prompts.safetensors` by its folder, others by their own name."""
    path, _ = split_prompts(spec)
    return path.resolve().parent.name if path.name == PROMPTS_NAME else path.name


def read_prompts(spec: str | Path) -> LearnedPrompts:
    """The prompts in a file of clipguard's, or in a `prompt_learner` checkpoint of APT or CoOp; no code of it is run.

    Args:
        spec: the file, or the folder of the run that wrote it. `#position=middle` at the end says where the class name
            stands, which the checkpoints of APT do not: "end" if nothing is said.

    Raises:
        ModelError: for a file that is missing, damaged, or holds no prompts.
    """
    path, position = split_prompts(str(spec))
    path = path / PROMPTS_NAME if path.is_dir() else path
    if not path.is_file():
        cure = f"`finetune --method apt` writes {PROMPTS_NAME} into its folder; name that file"
        raise ModelError(f"`prompts`: there is no file {path}: {cure}.")
    metadata = read_metadata(path).get(METADATA)
    content = read_plain(path)
    if metadata is None:
        prompts = _of_dassl(content, path, position or "end")
    else:
        if position is not None:
            raise ModelError(f"`prompts`: {path} says itself where its context stands; leave {POSITION} out.")
        try:
            prompts = prompts_of(json.loads(metadata), dict(content))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is a damaged prompt file ({first_line(error)}): make it again.") from error
    return prompts.at(str(path), hash_file(path))


def _of_dassl(content: Any, path: Path, position: Position) -> LearnedPrompts:
    """The prompts in `prompt_learner/model.pth.tar-N` of APT (and CoOp): {state_dict: {ctx, token_prefix, ...}}.

    `token_prefix` and `token_suffix` are those of the training classes, and are not read, as in APT's own loader.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    context = state.get("ctx") if isinstance(state, Mapping) else None
    if not isinstance(context, Tensor) or context.ndim not in (2, 3) or not context.is_floating_point():
        raise ModelError(
            f"{path} holds no prompts: neither clipguard's {PROMPTS_NAME} nor a `ctx` as in a checkpoint of APT; name a"
            " file that does."
        )
    check_finite({"ctx": context}, path)
    return LearnedPrompts("apt", Layout.free(context.shape[-2], position), context.float())


def base_of(loaded: LoadedModel) -> PromptBase:
    """What a prompt file says of the model it was learned on."""
    info, tower = loaded.info, text_tower(loaded.model, loaded.info.name)  # perhaps the model itself
    text = {name: p for name, p in tower.named_parameters() if not name.startswith(("visual.", "logit_"))}
    return PromptBase(info.name, info.architecture, loaded.tower_sha256, hash_tensors(text))


def with_prompts(loaded: LoadedModel, prompts: LearnedPrompts) -> LoadedModel:
    """A model that is scored with learned prompts, in place; templates then have no effect on it.

    Warns where the prompts were learned on another model of the same widths.

    Raises:
        ModelError: where the model cannot take them.
    """
    name = loaded.info.name
    if loaded.info.format == FORMAT:
        raise ModelError(f"`prompts`: {name} is a module, which has no text; name a CLIP model.")
    if loaded.text_map is not None:
        raise ModelError(f"`prompts`: the text of {name} is tuned by a map beside its weights; add `text=original`.")
    if loaded.prompts is not None:
        raise ModelError(f"`prompts`: {name} has learned prompts already; leave these out.")
    width = text_tower(loaded.model, name).token_embedding.weight.shape[1]
    layers = len(text_tower(loaded.model, name).transformer.resblocks)
    _check_fit(prompts, f"the text tower of {name}", prompts.context.shape[-1], width, prompts.deeper, layers - 1)
    if prompts.base is not None:
        _warn_of_another_base(prompts.base, base_of(loaded), prompts.label)
    if prompts.vision is not None:
        visual: Any = loaded.model.visual
        blocks, width = vision_size(visual, name)
        _check_fit(prompts, f"the image tower of {name}", prompts.vision.shape[-1], width, prompts.vision, blocks)
        FixedVisionPrompts(prompts.vision.to(loaded.device)).attach(visual)
    loaded.take_prompts(prompts)
    return loaded


def _check_fit(
    prompts: LearnedPrompts, tower: str, width: int, expected: int, deep: Tensor | None, layers: int
) -> None:
    """Raise ModelError for vectors of another width, or for more blocks than a tower has."""
    learned_on = f"; they were learned on {prompts.base.name}: name that model" if prompts.base else ""
    cure = learned_on or ": name the model they were learned on"
    if width != expected:
        raise ModelError(f"`prompts`: those of {prompts.label} are {width} wide, and {tower} is {expected} wide{cure}.")
    if deep is not None and len(deep) > layers:
        raise ModelError(f"`prompts`: those of {prompts.label} are for more blocks than {tower} has{cure}.")


def _warn_of_another_base(then: PromptBase, now: PromptBase, label: str) -> None:
    differing = [
        what
        for what, one, other in (
            ("image tower", then.image_tower, now.image_tower),
            ("text tower", then.text_tower, now.text_tower),
        )
        if one != other
    ]
    if differing:
        log.warning(
            "%s: the prompts of %s were learned on %s, which has another %s; it is scored with them all the same",
            now.name,
            label,
            then.name,
            " and another ".join(differing),
        )
