"""peft's `adapter_config.json`: what scales an adapter, and what clipguard cannot merge.

Fields and their meaning are those of peft (https://github.com/huggingface/peft, `tuners/lora/config.py`). What decides
which layers got an adapter (`target_modules`, `layers_to_transform` and so on) shows in the names of its tensors.
`fan_in_fan_out` is for GPT-2's Conv1D: CLIP's layers are linear, for which peft itself turns it off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.foreign import read_json

ADAPTER_CONFIG = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
# Without effect on what a trained adapter computes, or told by its tensors.
_NO_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_type", "peft_version",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "use_rslora", "use_dora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "runtime_config", "qalora_group_size",
    "ensure_weight_tying", "_name_or_path",
}  # fmt: skip
# Starts that leave the base's weights as they are: True and the like, and these. Others (pissa, olora, loftq, corda,
# lora_ga) take a part out of them, so that the adapter belongs on a base that was never saved.
_HARMLESS_STARTS = ("gaussian", "eva", "orthogonal")


_LAST_CHECKED = (0, 21)  # version of peft


@dataclass(frozen=True)
class AdapterConfig:
    """How an adapter is to be merged."""

    base: str  # as it names it; "" if it does not
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    root_scaled: bool  # rsLoRA: alpha / sqrt(rank)
    magnitudes: bool  # DoRA
    version: str = ""  # of peft; old ones do not say

    def rank_of(self, module: str) -> int:
        """The rank that a module's matrices must have."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The factor on B A: alpha / rank, of rsLoRA (Kalajdzievski, arXiv 2312.03732) alpha / sqrt(rank)."""
        rank = self.rank_of(module)
        return float(_matching(self.alpha_pattern, module, self.alpha)) / (
            math.sqrt(rank) if self.root_scaled else rank
        )

    @property
    def counts_out_proj_twice(self) -> bool:
        """Whether it was trained with a peft that adds B A of `out_proj` in torch's attention twice; see `merge.py`."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return numbers is None or (int(numbers[1]), int(numbers[2])) <= _LAST_CHECKED


def _matching(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """As peft's `get_pattern_key`: the first pattern that is the module's name, or the end of it after a dot."""
    return next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def is_adapter(folder: Path) -> bool:
    """Whether it is a folder that peft's `save_pretrained` wrote."""
    return (folder / ADAPTER_CONFIG).is_file()


def find_adapter(folder: Path) -> Path:
    """The weights of an adapter's folder.

    Raises:
        ModelError: when there are none.
    """
    found = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"{folder} has an {ADAPTER_CONFIG}, but no {' or '.join(WEIGHT_NAMES)}: put it there.")
    return found


def read_adapter_config(path: Path) -> AdapterConfig:
    """The checked config of a LoRA adapter.

    Raises:
        ModelError: for another kind of adapter, and for settings that change what it computes in ways that clipguard
            does not know, by name.
    """
    config = read_json(path)
    _refuse(path, config)
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for key, number in (("r", rank), ("lora_alpha", alpha), *ranks.items(), *alphas.items()):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ModelError(f"{path}: {key} must be a number, not {number!r}: save the adapter again.")
    if any(type(number) is not int or number < 1 for number in (rank, *ranks.values())):
        raise ModelError(f"{path}: ranks must be whole numbers above 0: save the adapter again.")
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        for key in pattern:
            _check_pattern(path, name, key)
    return AdapterConfig(
        base=str(config.get("base_model_name_or_path") or ""),
        rank=rank,
        alpha=alpha,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        root_scaled=bool(config.get("use_rslora")),
        magnitudes=bool(config.get("use_dora")),
        version=str(config.get("peft_version") or ""),
    )


def _check_pattern(path: Path, name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ModelError(f"{path}: {name} {pattern!r} is no pattern ({error}): save the adapter again.") from error


def _refuse(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError, naming the setting, for what is not merged here."""
    merge = "merge it where it was trained (peft's merge_and_unload), and give the whole model"
    kind = str(config.get("peft_type") or "none")
    if kind != "LORA":
        raise ModelError(f"{path}: peft_type {kind} is not supported, only LORA: {merge}.")
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool) and str(start).lower() not in _HARMLESS_STARTS:
        raise ModelError(
            f"{path}: init_lora_weights {start!r} changed the base's weights before training, so that the adapter does"
            f" not belong on the base itself: {merge}."
        )
    unknown = sorted(key for key, value in config.items() if value and key not in _NO_EFFECT)
    if unknown:
        raise ModelError(f"{path}: {unknown[0]} is not supported ({str(config[unknown[0]])[:80]}): {merge}.")
