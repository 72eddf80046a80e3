"""What a checkpoint is, without building it: format, towers, architecture, training, and how to bench it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from clipguard.core.errors import ModelError
from clipguard.core.hub_access import hub_access
from clipguard.core.notices import noticing
from clipguard.models.build import Checkpoint
from clipguard.models.checkpoint.architecture import find_architectures
from clipguard.models.checkpoint.layouts import explain_adapter
from clipguard.models.checkpoint.reader import WeightFile, find_release, read_weights
from clipguard.models.locate import config_folder, detect, locate
from clipguard.models.source import DIR_PREFIX, ModelSource, parse_source, uses_quick_gelu


@dataclass(frozen=True)
class Inspection:
    """What `clipguard inspect` says."""

    source: str
    path: str
    bytes: int
    sha256: str
    container: str  # safetensors, torch.save or TorchScript
    format: str
    entry: str  # where in the file the weights are; "" for the file itself
    towers: list[str]  # image, text
    tensors: int
    parameters: int
    dtypes: dict[str, int]  # number of tensors
    architectures: list[str]  # open_clip's, of these names and shapes; or the config that describes it
    activation: str  # "not known" where neither config nor file tells
    release: str | None  # the published file with this SHA-256
    base: str | None  # for an image tower: the model whose text tower goes with it, if known
    notes: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)  # what the file says about its training
    command: str = ""  # to bench it
    needs: str = ""  # what must be named before it can be benched

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)


def inspect_model(spec: str) -> Inspection:
    """Describe the weights behind a `--model` value. Nothing is built, and no base model is fetched.

    Raises:
        ModelError: when there is nothing that can be read there.
    """
    with noticing():  # a file may be read twice; what is said of it, once
        return _inspect(spec)


def _inspect(spec: str) -> Inspection:
    source = parse_source(spec)
    if source.kind == "tag":
        raise ModelError(f"{spec} names weights that open_clip publishes: `{bench_command(spec)}`.")
    if source.kind == "file":
        return _inspect_file(source)
    if source.kind == "hub":
        with hub_access():
            checkpoint = locate(source)
    else:
        checkpoint = locate(source)
    return _inspection(
        source,
        read_weights(checkpoint.weights),
        architectures=[checkpoint.architecture],
        activation=_activation(checkpoint),
        base=None,
        notes=list(checkpoint.notes),
        command=bench_command(source.spec),
    )


def _activation(checkpoint: Checkpoint) -> str:
    config = checkpoint.model_cfg
    own = "QuickGELU" if config.get("quick_gelu", False) else "GELU"
    return str(config["vision_cfg"].get("timm_model_name") or own)


def bench_command(spec: str, base: str | None = None) -> str:
    """The command line that benches a model, to paste into a shell."""
    return shlex.join(["clipguard", "bench", "--model", spec, *(["--base", base] if base else [])])


def _inspect_file(source: ModelSource) -> Inspection:
    file = read_weights(Path(source.weights), source.entry)
    if file.contents.adapter:
        return _inspection(source, file, [], "of its base", None, needs=explain_adapter(file.path))
    found = [source.name] if source.name else find_architectures(file)
    folder = None if source.name or file.contents.image_only else config_folder(file.path)
    if folder is not None:
        checkpoint = locate(parse_source(f"{DIR_PREFIX}{folder}"))
        command = f"clipguard bench --model {DIR_PREFIX}{folder}"
        return _inspection(
            source,
            file,
            found or [checkpoint.architecture],
            _activation(checkpoint),
            None,
            list(checkpoint.notes),
            command,
        )
    try:
        resolved, _, notes = detect(source)
    except ModelError as error:
        activation = "of its base" if file.contents.image_only else "not known"
        return _inspection(source, file, found, activation, None, needs=str(error))
    base = resolved.base
    if base is None:
        activation = "QuickGELU" if uses_quick_gelu(resolved.name) else "GELU"
        command = bench_command(f"{resolved.name}:{source.spec.removeprefix(f'{source.name}:')}")
    else:
        activation = "of its base"
        command = bench_command(source.spec, None if source.base else base.spec)
    return _inspection(source, file, found, activation, base.spec if base else None, list(notes), command)


def _inspection(
    source: ModelSource,
    file: WeightFile,
    architectures: list[str],
    activation: str,
    base: str | None,
    notes: list[str] | None = None,
    command: str = "",
    needs: str = "",
) -> Inspection:
    contents, release = file.contents, find_release(file.sha256)
    return Inspection(
        source=source.spec,
        path=str(file.path),
        bytes=sum(part.stat().st_size for part in file.parts),
        sha256=file.sha256,
        container=file.container + (f", {len(file.parts)} files" if len(file.parts) > 1 else ""),
        format=contents.format,
        entry=contents.entry,
        towers=[] if contents.adapter else ["image"] if contents.image_only else ["image", "text"],
        tensors=len(file.tensors),
        parameters=sum(tensor.numel() for tensor in file.tensors.values()),
        dtypes=_count_dtypes(file.tensors),
        architectures=architectures,
        activation=activation,
        release=release.name if release else None,
        base=base,
        notes=[*(notes or []), *contents.notes],
        training=contents.training,
        command=command,
        needs=needs,
    )


def _count_dtypes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()))
