"""What a checkpoint is, without building it: format, towers, architecture, training, and how to bench it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipguard.core.checking import check_type
from clipguard.core.environment.hub_access import hub_access
from clipguard.core.errors import ModelError
from clipguard.core.notices import noticing
from clipguard.models.adapters.config import is_adapter
from clipguard.models.adapters.merge import read_adapter
from clipguard.models.build import Checkpoint
from clipguard.models.checkpoint.architecture import find_architectures
from clipguard.models.checkpoint.contents import explain_adapter
from clipguard.models.checkpoint.reader import WeightFile, find_release, read_weights
from clipguard.models.given import open_model
from clipguard.models.loading import LoadedModel, hash_tensors
from clipguard.models.sources.detect import bring_here, detect
from clipguard.models.sources.locate import config_folder, locate
from clipguard.models.sources.open_clip_catalog import uses_quick_gelu
from clipguard.models.sources.spec import DIR_PREFIX, ModelSource, parse_source


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
    architectures: list[str] = field(default_factory=list)  # that fit names and shapes; or the config that says it
    activation: str = "not known"  # where neither config nor file tells
    release: str | None = None  # the published file with this SHA-256
    base: str | None = None  # for an image tower: the model whose text tower goes with it, if known
    notes: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)  # what the file says about its training
    command: str = ""  # to bench it
    needs: str = ""  # what must be named before it can be benched

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)


def inspect_model(spec: str | Path | LoadedModel) -> Inspection:
    """Describe the weights behind a model's spec. Nothing is built, and no base model is fetched.

    Args:
        spec: a name; or what `load_model` gave, which is described as it is in memory.

    Raises:
        ModelError: when there is nothing that can be read there.
    """
    if isinstance(spec, (LoadedModel, nn.Module)):
        return _inspect_loaded(open_model(spec))
    check_type("A model's name", spec, str | Path, ModelError)
    with noticing():  # a file may be read twice; what is said of it, once
        return _inspect(str(spec))


def _inspect(spec: str) -> Inspection:
    source = parse_source(spec)
    if source.kind == "tag":
        raise ModelError(f"{spec} names weights that open_clip publishes: `{bench_command(spec)}`.")
    if source.kind == "file":
        return _inspect_file(bring_here(source))
    if source.kind == "adapter":
        return _inspect_adapter(source)
    with hub_access() if source.kind == "hub" else nullcontext():
        checkpoint = locate(source)
    inspection = _read(source, read_weights(checkpoint.weights))
    return _with_config(inspection, checkpoint, bench_command(source.spec))


def _inspect_loaded(model: LoadedModel) -> Inspection:
    """A model in memory; `path` and `sha256` are of the file that it came from."""
    info, tensors = model.info, model.model.state_dict()
    release = find_release(info.sha256)
    return Inspection(
        source=info.name,
        path=info.weights,
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        sha256=info.sha256,
        container="in memory",
        format=info.format,
        entry="",
        towers=["image", "text"],
        tensors=len(tensors),
        parameters=info.parameters,
        dtypes=_count_dtypes(tensors),
        architectures=[info.architecture],
        activation=info.activation,
        release=release.name if release else None,
        base=info.base,
        notes=[*info.detected, f"given in memory, SHA-256 of its tensors {hash_tensors(tensors)}"],
        command=bench_command(info.name),
    )


def bench_command(spec: str, base: str | None = None) -> str:
    """The command line that benches a model, to paste into a shell."""
    return shlex.join(["clipguard", "bench", "--model", spec, *(["--base", base] if base else [])])


def _inspect_file(source: ModelSource) -> Inspection:
    file = read_weights(Path(source.weights), source.entry)
    if file.contents.adapter and is_adapter(file.path.parent):
        return _inspect_adapter(source)
    inspection = _read(source, file)
    if file.contents.adapter:
        return replace(inspection, activation="of its base", needs=explain_adapter(file.path))
    inspection = replace(inspection, architectures=[source.name] if source.name else find_architectures(file))
    folder = None if source.name or file.contents.image_only else config_folder(file.path)
    if folder is not None:
        checkpoint = locate(parse_source(f"{DIR_PREFIX}{folder}"))
        return _with_config(inspection, checkpoint, f"clipguard bench --model {DIR_PREFIX}{folder}")
    if file.contents.image_only:
        inspection = replace(inspection, activation="of its base")
    try:
        detected = detect(source)
    except ModelError as error:
        return replace(inspection, needs=str(error))
    inspection = replace(inspection, notes=[*detected.notes, *inspection.notes])
    base, architecture = detected.source.base, detected.source.name
    if base is not None:
        command = bench_command(source.spec, None if source.base else base.spec)
        return replace(inspection, base=base.spec, command=command)
    return replace(
        inspection,
        activation="QuickGELU" if uses_quick_gelu(architecture) else "GELU",
        command=bench_command(f"{architecture}:{source.spec.removeprefix(f'{source.name}:')}"),
    )


def _inspect_adapter(source: ModelSource) -> Inspection:
    """An adapter, with the base that is named or that its config names; nothing is merged."""
    source = bring_here(source)
    weights = Path(source.weights)
    adapter = read_adapter(weights if weights.is_dir() else weights.parent)
    inspection = _read(source, adapter.file)
    inspection = replace(inspection, sha256=adapter.sha256, activation="of its base", notes=list(adapter.notes))
    try:
        detected = detect(source)
    except ModelError as error:
        return replace(inspection, needs=str(error))
    assert detected.source.base is not None
    base = detected.source.base.spec
    return replace(
        inspection,
        base=base,
        notes=[*detected.notes, *adapter.notes],
        command=bench_command(source.spec, None if source.base else base),
    )


def _read(source: ModelSource, file: WeightFile) -> Inspection:
    """What the weights themselves say."""
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
        release=release.name if release else None,
        notes=list(contents.notes),
        training=contents.training,
    )


def _with_config(inspection: Inspection, checkpoint: Checkpoint, command: str) -> Inspection:
    """The same with what the config beside the weights says."""
    return replace(
        inspection,
        architectures=inspection.architectures or [checkpoint.architecture],
        activation=checkpoint.activation,
        notes=[*checkpoint.notes, *inspection.notes],
        command=command,
    )


def _count_dtypes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()))
