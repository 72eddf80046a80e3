"""What a loaded file holds: where in it the weights are, and their tensors from any published layout to open_clip's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clipguard.core.errors import ModelError
from clipguard.core.notices import notice
from clipguard.models.adapters.config import ADAPTER_CONFIG
from clipguard.models.checkpoint.prefixes import find_prefixes, split_by_prefix, strip_prefixes
from clipguard.models.checkpoint.transformers import from_transformers, is_transformers
from clipguard.models.checkpoint.unpickler import Inert

METADATA_KEYS = ("input_resolution", "context_length", "vocab_size")  # only OpenAI's files carry these
# By entry, the format of code that tunes the image tower of OpenAI's `clip` package, which has OpenAI's models only.
OPENAI_TOWER_FORMATS = {
    "vision_encoder_state_dict": "image tower as TeCoA saves it",  # PMG-AFT, TGA-ZSR, SAFT, TTC and APT, too
    "partial_state_dict": "image tower as AdvFLYP saves it",
    "modules.clip.visual": "image tower as AGFT saves it",
}
# If a file holds several, the first of these is meant; an average of the weights only where nothing else is.
_ENTRIES = (
    *OPENAI_TOWER_FORMATS,
    "state_dict",
    "model_state_dict",
    "model",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema",
)
_IMAGE_ONLY_MARKS = ("class_embedding", "conv1.weight")  # of a ViT or ResNet; timm towers begin with "trunk."
_TEXT_MARKS = ("text.", "text_encoder.", "text_projection", "token_embedding.", "ln_final.")
_UNUSED = "prompt_pos_embedding"  # TeCoA's patched ViT has it, for visual prompts that are not part of the tower


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    format: str  # for people
    entry: str  # "state_dict", "modules.clip.visual" ...; "" where the file is the state dict
    tensors: dict[str, Tensor]  # under open_clip's names, an image tower's with "visual."
    image_only: bool
    metadata_keys: tuple[str, ...]  # of OpenAI's releases
    training: dict[str, Any]  # plain values stored beside the weights
    notes: tuple[str, ...]  # what was left out
    adapter: bool = False  # small matrices that belong on a base model, and no model

    @property
    def openai_base(self) -> bool:
        """Whether only OpenAI's models are tuned by the code that saves this layout."""
        return self.entry in OPENAI_TOWER_FORMATS


def find_contents(raw: Any, path: Path, entry: str = "") -> Contents:
    """The weights inside a loaded file.

    Args:
        raw: what the file holds.
        path: of the file, for messages.
        entry: which of several state dicts is meant, as in "model_ema"; by default the one that is known to hold the
            weights.

    Raises:
        ModelError: when there is no state dict, no such one, or several of which none is known.
    """
    if not isinstance(raw, Mapping) or not raw:
        raise ModelError(f"{path} holds no state dict but {type(raw).__name__}: save model.state_dict() and load that.")
    if _has_parts(raw):
        raise ModelError(
            f"{path} holds the part that one process of several has (DTensor, ShardedTensor): gather them before saving"
            " (torch.distributed.checkpoint.state_dict with full_state_dict=True), or give a checkpoint of"
            " torch.distributed as a folder."
        )
    states = dict(_state_dicts(raw))
    chosen = _choose(states, path, entry, raw)
    adapter = _is_adapter(states[chosen], path)
    tensors, outside = (dict(states[chosen]), []) if adapter else _unwrap(states[chosen], path)
    metadata = tuple(key for key in METADATA_KEYS if tensors.pop(key, None) is not None)
    others = [f"left out: {name} ({len(state)} tensors)" for name, state in states.items() if name != chosen]
    notes = [*others, *outside]
    models = [name for name, state in states.items() if name != chosen and find_prefixes(state)]
    if models and not entry:
        notice(
            "skipped", f"{path} holds several models: used {chosen}, left out {', '.join(models)} (#entry= names one)"
        )
    if tensors.pop(_UNUSED, None) is not None:
        notes.append(f"left out: {_UNUSED}, which serves visual prompts only")
    layout = OPENAI_TOWER_FORMATS.get(chosen)
    if adapter:
        layout = "LoRA adapter (peft)"
    elif is_transformers(tensors):
        tensors, layout = from_transformers(tensors, path), "Hugging Face CLIPModel weights"
    tensors, image_only = (tensors, False) if adapter else _name_towers(tensors)
    layout = layout or ("image tower" if image_only else "CLIP state dict")
    training = {} if not chosen else _training(raw, states)
    return Contents(layout, chosen, tensors, image_only, metadata, training, tuple(notes), adapter)


def _state_dicts(raw: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of tensors in a file, by where it is; the file itself is ""."""
    if _is_state_dict(raw):
        state = {str(key): value for key, value in raw.items()}
        several = find_prefixes(state)
        if len(several) > 1:  # a model and its average, a student and its teacher
            yield from ((f"{prefix}{name}".rstrip("."), part) for name, part in split_by_prefix(state, several).items())
        else:
            yield prefix.rstrip("."), state
        return
    for key, value in raw.items():
        if isinstance(value, Mapping) and prefix.count(".") < 2:
            yield from _state_dicts(value, f"{prefix}{key}.")


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _has_parts(value: Any, depth: int = 3) -> bool:
    """Whether any of the tensors is divided over processes, and this file has one process's part."""
    if isinstance(value, Mapping):
        return depth > 0 and any(_has_parts(item, depth - 1) for item in value.values())
    if isinstance(value, Inert):
        return value.name.endswith(("DTensor", "ShardedTensor"))
    return isinstance(value, Tensor) and hasattr(value, "to_local")


def _choose(states: Mapping[str, Any], path: Path, entry: str, raw: Mapping[Any, Any]) -> str:
    if entry:
        if entry not in states:
            raise ModelError(f"{path} has no entry {entry!r}: it holds {', '.join(states) or 'no state dict'}.")
        return entry
    known = [name for name in _ENTRIES if name in states]
    if known:
        return known[0]
    if len(states) == 1:
        return next(iter(states))
    if states:
        names = ", ".join(states)
        raise ModelError(
            f"{path} holds several state dicts ({names}): name one, as in {path}#entry={next(iter(states))}."
        )
    others = [str(key) for key, value in raw.items() if not isinstance(value, Tensor)]
    raise ModelError(
        f"{path} is not a state dict: {shorten(others)} {'is' if len(others) == 1 else 'are'} not tensors; save"
        ' model.state_dict(), bare or under "state_dict".'
    )


def _unwrap(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the model's own names, and what was done to get there; both are said."""
    notes = []
    stripped = strip_prefixes(state)
    if stripped.unknown:
        notes.append(f"all names of the model begin with {stripped.unknown!r}: read without that")
        notice("translated", f"{path}: {notes[-1]}")
    if stripped.outside:
        count = len(stripped.outside)
        notes.append(f"left out: {shorten(stripped.outside)} ({count} tensor{'s' * (count > 1)} outside the model)")
        notice("skipped", f"{path}: {notes[-1]}")
    return stripped.state, notes


def _is_adapter(tensors: Iterable[str], path: Path) -> bool:
    lora = re.compile(r"\.lora_(A|B|embedding_[AB]|magnitude_vector|up|down)\b|\.(hada_w|ia3_l)")
    return any(lora.search(name) for name in tensors) or path.name.startswith("adapter_model.")


def explain_adapter(path: Path) -> str:
    """What to do with a file that holds an adapter without its config."""
    return (
        f"{path} is an adapter for another model (LoRA), not a model, and its {ADAPTER_CONFIG}, which says how it is to"
        " be scaled, is not beside it: put it there (peft's save_pretrained writes both), or merge it where it was"
        " trained."
    )


def _name_towers(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Whether these are the tensors of an image tower alone, and if so, their names in the whole model."""
    if all(name.startswith("visual.") for name in tensors):
        inner = strip_prefixes({name.removeprefix("visual."): tensor for name, tensor in tensors.items()}).state
        return {f"visual.{name}": tensor for name, tensor in inner.items()}, True
    if any(name.startswith(_TEXT_MARKS) for name in tensors):
        return tensors, False
    if any(name.startswith("visual.") for name in tensors):
        return tensors, True  # and names that do not belong there, for the strict comparison to report
    if not any(name in _IMAGE_ONLY_MARKS or name.startswith("trunk.") for name in tensors):
        return tensors, False
    return {f"visual.{name}": tensor for name, tensor in tensors.items()}, True


def _training(raw: Mapping[Any, Any], entries: Iterable[str]) -> dict[str, Any]:
    """What a checkpoint says about its training, without weights and optimizer: epoch, accuracy, arguments."""
    weights = [f"{name}." for name in entries]
    kept = {key: value for key, value in raw.items() if not (isinstance(value, Mapping) and "param_groups" in value)}
    plain = _plain(kept)
    return {key: v for key, v in plain.items() if v != {} and not any(w.startswith(f"{key}.") for w in weights)}


def _plain(value: Any) -> Any:
    """Finite numbers, texts and containers of them, as JSON can hold; None for anything else."""
    if isinstance(value, Inert):
        return _plain(value.state) or None
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value] if len(value) <= 20 else None
    if isinstance(value, Tensor):
        return _plain(value.item()) if value.numel() == 1 else None
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (bool, int, float, str)) else None


def shorten(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
