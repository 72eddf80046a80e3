"""The tensors of a LoRA adapter, by the module of the base model that they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from clipguard.core.errors import ModelError

_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
_WRAPPERS = re.compile(r"(?:base_model\.|model\.)+")  # of peft, one in another; no CLIP's own names begin so
_SAVED = re.compile(r"\.modules_to_save(?:\.[^.]+(?=\.(?:weight|bias)$))?")


@dataclass
class AdapterTensors:
    """What an adapter's file holds."""

    matrices: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module -> part -> tensor
    whole: dict[str, Tensor] = field(default_factory=dict)  # tensors that take the place of the base's


def sort_tensors(tensors: Mapping[str, Tensor], path: Path) -> AdapterTensors:
    """Tensors as peft names them, `base_model.model.MODULE.lora_A.weight`, by module.

    Raises:
        ModelError: for a file with several adapters, or parts of LoRA that clipguard does not know.
    """
    found, adapters = AdapterTensors(), set[str]()
    for name, tensor in tensors.items():
        plain = _WRAPPERS.sub("", name, count=1) if _WRAPPERS.match(name) else name
        plain = plain.replace(".base_layer.", ".")
        module, part, adapter = _take_apart(plain)
        if part in _PARTS:
            adapters.add(adapter)
            found.matrices.setdefault(module, {})[part] = tensor
        elif "lora_" in plain:
            raise ModelError(f"{path}: {name} is a part of LoRA that clipguard does not know: merge it with peft.")
        else:
            found.whole[_SAVED.sub("", plain)] = tensor
    if len(adapters) > 1:
        names = ", ".join(sorted(adapters))
        raise ModelError(f"{path} holds several adapters ({names}): save one alone (peft's save_pretrained does).")
    return found


def _take_apart(name: str) -> tuple[str, str, str]:
    """Module, part and adapter of `MODULE.lora_A[.ADAPTER][.weight]`; in files of peft the adapter has no name."""
    module, mark, rest = name.partition(".lora_")
    if not mark:
        return name, "", ""
    part, *more = f"lora_{rest}".split(".")
    if more and more[-1] == "weight":
        more.pop()
    return (module, part, ".".join(more)) if "bias" not in more else (module, "lora_bias", "")
