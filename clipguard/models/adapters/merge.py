"""Merge a LoRA adapter into the weights of its base model: W + s B A (Hu et al., arXiv 2106.09685), in float32.

DoRA (Liu et al., arXiv 2402.09353) scales each row of that to a learnt length. As peft does on merging.

Decided here: in torch's own attention (open_clip's `attn`), peft (read: 0.17 and 0.21) adds B A of `out_proj` twice, in
training as in evaluation and on merging. So does clipguard: that is the model that was trained. Of a later peft it is
refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from clipguard.core.errors import ModelError
from clipguard.models.adapters.config import ADAPTER_CONFIG, AdapterConfig, find_adapter, read_adapter_config
from clipguard.models.adapters.tensors import AdapterTensors, sort_tensors
from clipguard.models.checkpoint.contents import shorten
from clipguard.models.checkpoint.reader import WeightFile, hash_file, read_weights
from clipguard.models.checkpoint.transformers import from_transformers, to_transformers

State = dict[str, Tensor]
_OF_TRANSFORMERS = re.compile(r"(vision_model|text_model|visual_projection|text_projection|encoder\.layers)\b")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was read."""

    file: WeightFile
    config: AdapterConfig
    tensors: AdapterTensors
    sha256: str  # of the SHA-256 of config and weights, which both change what it computes

    @property
    def notes(self) -> tuple[str, ...]:
        """What it consists of."""
        matrices, whole = len(self.tensors.matrices), len(self.tensors.whole)
        more = f", and {whole} tensors whole" if whole else ""
        return (f"LoRA merged into {matrices} modules{more}",)


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder that peft's `save_pretrained` wrote.

    Raises:
        ModelError: when it cannot be read safely, or be merged.
    """
    where = folder / ADAPTER_CONFIG
    config, file = read_adapter_config(where), read_weights(find_adapter(folder))
    hashes = hash_file(where) + file.sha256
    tensors = sort_tensors(file.contents.tensors, file.path)
    if not tensors.matrices:
        raise ModelError(f"{file.path} has no matrices of LoRA: it is no adapter, or saved before it was trained.")
    return Adapter(file, config, tensors, hashlib.sha256(hashes.encode()).hexdigest())


def merge_adapter(model: nn.Module, adapter: Adapter, base: str) -> None:
    """Put an adapter into an open_clip model, all of it or nothing.

    Its names may be those of transformers' CLIPModel or of open_clip, of a whole model or an image tower.

    Raises:
        ModelError: when it does not fit, naming the module.
    """
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    names = [*adapter.tensors.matrices, *adapter.tensors.whole]
    theirs = any(_OF_TRANSFORMERS.match(name) for name in names)
    if theirs:
        try:
            state = to_transformers(state)
        except KeyError as error:
            raise ModelError(
                f"{adapter.file.path} is an adapter for transformers' CLIPModel, which {base} is not (it has {error}):"
                " name its own base."
            ) from error
    towers = ("", "vision_model.", "text_model.") if theirs else ("", "visual.")
    merged = _merge(state, adapter, _find_prefix(state, adapter, towers, base))
    model.load_state_dict(from_transformers(merged, adapter.file.path) if theirs else merged)


def _find_prefix(state: Mapping[str, Tensor], adapter: Adapter, towers: tuple[str, ...], base: str) -> str:
    """What stands before the adapter's names in the whole model: nothing, or its tower's name."""
    found = {prefix: _misfits(state, adapter, prefix) for prefix in towers}
    fitting = [prefix for prefix, misfits in found.items() if not misfits]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ModelError(
            f"{adapter.file.path} fits both towers of {base}, and nothing tells which it was trained on: save it with"
            " the whole model's names, or merge it where it was trained."
        )
    misfits = min(found.values(), key=len)
    raise ModelError(
        f"{adapter.file.path} does not fit {base}: {shorten(misfits, 2)}. Name the base it was trained on."
    )


def _misfits(state: Mapping[str, Tensor], adapter: Adapter, prefix: str) -> list[str]:
    """What of an adapter has no place in a model, in words."""
    problems = []
    for name, tensor in adapter.tensors.whole.items():
        own = state.get(prefix + name)
        if own is None or own.shape != tensor.shape:
            problems.append(f"{name} ({list(tensor.shape)}) is {'no tensor of it' if own is None else list(own.shape)}")
    for module, parts in adapter.tensors.matrices.items():
        own = state.get(_target(state, prefix + module))
        shape = _delta_shape(parts)
        if own is None or shape is None or list(own.shape) != shape:
            problems.append(f"{module} ({shape}) is {'no module of it' if own is None else list(own.shape)}")
    return problems


def _target(state: Mapping[str, Tensor], module: str) -> str:
    """The tensor of a module that an adapter changes; of open_clip's attention, that of query, key and value."""
    fused = f"{module}.in_proj_weight"
    return fused if fused in state else f"{module}.weight"


def _delta_shape(parts: Mapping[str, Tensor]) -> list[int] | None:
    """The shape of B A; None where it has none."""
    down, up = parts.get("lora_A"), parts.get("lora_B")
    if down is not None and up is not None:
        one = all(size == 1 for size in up.shape[2:])
        return [up.shape[0], *down.shape[1:]] if one and up.ndim == down.ndim and up.shape[1] == down.shape[0] else None
    down, up = parts.get("lora_embedding_A"), parts.get("lora_embedding_B")
    if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        return None
    return [down.shape[1], up.shape[0]]


def _merge(state: State, adapter: Adapter, prefix: str) -> State:
    merged = {**state, **{prefix + name: tensor.float() for name, tensor in adapter.tensors.whole.items()}}
    for module, parts in adapter.tensors.matrices.items():
        name = _target(state, prefix + module)
        _check_module(state, adapter, prefix, module)
        times = 2 if _is_fused_output(state, prefix + module) else 1
        weight = merged[name] + times * adapter.config.scale_of(module) * _delta(parts).reshape(merged[name].shape)
        if adapter.config.magnitudes:
            rows = weight.flatten(1)
            lengths = parts["lora_magnitude_vector"].float().reshape(-1, 1)
            weight = (lengths * rows / rows.norm(dim=1, keepdim=True)).reshape(weight.shape)
        merged[name] = weight
    return merged


def _delta(parts: Mapping[str, Tensor]) -> Tensor:
    """B A, as a matrix in float32."""
    if "lora_A" in parts:
        return parts["lora_B"].float().flatten(1) @ parts["lora_A"].float().flatten(1)
    return (parts["lora_embedding_B"].float() @ parts["lora_embedding_A"].float()).T


def _check_module(state: Mapping[str, Tensor], adapter: Adapter, prefix: str, module: str) -> None:
    """Raises ModelError for what would be merged, and merged wrongly."""
    parts, name = adapter.tensors.matrices[module], _target(state, prefix + module)
    path, rank = adapter.file.path, adapter.config.rank_of(module)
    stored = len(parts.get("lora_A", parts.get("lora_embedding_A", ())))
    if stored != rank:
        raise ModelError(f"{path} has rank {stored} in {module}, and its {ADAPTER_CONFIG} says {rank}: save it again.")
    has_lengths, plain = "lora_magnitude_vector" in parts, "lora_A" in parts and not name.endswith("in_proj_weight")
    if adapter.config.magnitudes and not (has_lengths and plain):
        raise ModelError(f"{path}: DoRA (use_dora) of {module} is not supported: merge it with peft.")
    if has_lengths and not adapter.config.magnitudes:
        raise ModelError(
            f"{path} has lengths of DoRA in {module}, and its {ADAPTER_CONFIG} no use_dora: save it again."
        )
    if not _is_fused_output(state, prefix + module) or not bool(parts["lora_B"].any()):
        return
    attention = module.removesuffix(".out_proj")
    if not adapter.config.counts_out_proj_twice:
        raise ModelError(
            f"{path} was written by peft {adapter.config.version}, and how that scales {module} is not known to this"
            " clipguard: merge it with peft."
        )
    if attention not in adapter.tensors.matrices:
        raise ModelError(
            f"{path} changes {module} without {attention}, which torch's attention never runs with an adapter: what was"
            " trained cannot be told; merge it where it was trained."
        )


def _is_fused_output(state: Mapping[str, Tensor], module: str) -> bool:
    """Whether a module is the last layer of torch's own attention, which has one matrix for query, key and value."""
    attention, _, layer = module.rpartition(".")
    return layer == "out_proj" and f"{attention}.in_proj_weight" in state
