"""Take off what wrappers put before and into the names of tensors: DataParallel, FSDP, Lightning, averages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

_KNOWN = ("module", "model", "clip", "clip_model", "net", "network", "ema", "ema_model", "averaged_model", "model_ema",
          "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # fmt: skip
# Part of no model's own names, so they go from inside wherever they are: they may wrap a tower or a single block.
_INSIDE = re.compile(r"(?<=\.)(?:module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")
# What every whole model has, and every image tower: the model is what shares the prefix of these.
_WHOLE = re.compile(r"(|.*\.)logit_scale")
_TOWER = re.compile(
    r"(|.*?\.)vision_model\.embeddings\.class_embedding"
    r"|(|.*?\.)(?:visual\.)?(?:class_embedding|attnpool\.positional_embedding|trunk\..*)"
)
# How names begin in a model (open_clip's, transformers', OpenAI's metadata) and in an image tower.
_OF_MODELS = ("visual.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection",
              "logit_", "text.", "text_decoder.", "image_encoder.", "text_encoder.", "vision_model.", "text_model.",
              "visual_projection.", "cls_emb", "input_resolution", "context_length", "vocab_size")  # fmt: skip
_OF_TOWERS = re.compile(
    r"class_embedding$|proj$|(conv|bn|layer)\d\.|ln_(pre|post)\.|trunk\.|attn_?pool\."  # and a timm tower's head
)
# Of averages of weights: torch's AveragedModel, ema-pytorch, LitEma. No model has such names.
_COUNTERS = ("n_averaged", "num_updates", "decay", "initted", "step")


@dataclass(frozen=True)
class Stripped:
    """A state dict without its wrappers."""

    state: dict[str, Tensor]
    unknown: str  # the prefix that was taken off, if it is no known wrapper's
    outside: list[str]  # names beside the model, left out


def find_prefixes(state: Iterable[str]) -> list[str]:
    """What stands before the names of each model in a state dict, sorted: [""] for a plain one, [] if none shows."""
    names = [_INSIDE.sub("", name) for name in state]
    whole = {match[1] for name in names if (match := _WHOLE.fullmatch(name))}
    if not whole:
        whole = {match[1] or match[2] or "" for name in names if (match := _TOWER.fullmatch(name))}
    # A part of a model, as in text.logit_scale, is none.
    return sorted(p for p in whole if not any(p != other and p.startswith(other) for other in whole))


def split_by_prefix(state: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each of several models, by prefix; what belongs to none is under "others."."""
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    others: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = _INSIDE.sub("", name)
        parts.get(next((prefix for prefix in parts if plain.startswith(prefix)), ""), others)[name] = tensor
    return {**parts, "others.": others} if others else parts


def strip_prefixes(state: Mapping[str, Tensor]) -> Stripped:
    """The model's own names. What is beside its prefix and looks like part of a model is kept, for the strict
    comparison to report.
    """
    plain = {_INSIDE.sub("", name): tensor for name, tensor in state.items()}
    if len(plain) < len(state):  # two names would become one: not wrappers, then
        plain = dict(state)
    plain = _strip_shared(plain)
    prefixes = find_prefixes(plain)
    prefix = prefixes[0] if len(prefixes) == 1 else ""
    if not prefix:
        counters = [name for name in plain if name in _COUNTERS and plain[name].numel() == 1]
        return Stripped({name: tensor for name, tensor in plain.items() if name not in counters}, "", counters)
    inside = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    tower = not any(_WHOLE.fullmatch(name) for name in plain)
    timm = any(name.startswith("trunk.") for name in inside)
    beside = [name for name in plain if not name.startswith(prefix)]
    outside = [name for name in beside if not _could_belong(name, tower=tower, timm=timm)]
    kept = {name: plain[name] for name in beside if name not in outside and name not in inside}
    known = all(part in _KNOWN for part in prefix.rstrip(".").split("."))
    return Stripped(_strip_shared({**inside, **kept}), "" if known else prefix, outside)


def _could_belong(name: str, *, tower: bool, timm: bool) -> bool:
    """Whether a name may be that of a part of a model, or of an image tower alone."""
    in_tower = bool(_OF_TOWERS.match(name)) or (timm and name.startswith("head."))
    return name.startswith(_OF_MODELS) or (tower and in_tower)


def _strip_shared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the known prefixes that all names share."""
    changed = True
    while changed:
        changed = False
        for known in _KNOWN:
            if state and all(name.startswith(f"{known}.") for name in state):
                state = {name.removeprefix(f"{known}."): tensor for name, tensor in state.items()}
                changed = True
    return state
