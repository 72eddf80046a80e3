"""Checkpoints of torch.distributed (DCP, sharded FSDP): a folder with `.metadata` and `__RANK_I.distcp` files.

Which file holds which part of which tensor is in `.metadata`, a pickle that torch itself loads without restriction.
Decided here: it is read by an unpickler that knows the classes of torch's own plan and refuses every other name;
tensors are then read by torch's reader, which does so with `weights_only`, whole and in this process, from however many
ranks. What is no tensor (epochs, an optimizer's settings) is pickled, too, and torch would load it unrestricted: it is
not read, and neither is an optimizer's state, which is as large as two models.
"""

from __future__ import annotations

import collections
import importlib
import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from clipguard.core.errors import ModelError, first_line
from clipguard.models.checkpoint.shards import METADATA_NAME
from clipguard.models.checkpoint.unpickler import RefusedError

_NOT_WEIGHTS = ("optimizer", "optim", "lr_scheduler", "scheduler", "scaler")
_PLAN = "torch.distributed.checkpoint"
_PLAN_CLASSES = {
    (f"{_PLAN}.metadata", name)
    for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
                 "ChunkStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING")
} | {
    (f"{_PLAN}.filesystem", "_StorageInfo"),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),  # before torch 2.3
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
}  # fmt: skip


def read_distributed(path: Path) -> dict[str, Any]:
    """The tensors of such a folder as `torch.save` would hold them: nested as they were, without an optimizer's.

    Raises:
        ModelError: when the plan names anything but torch's own classes, a file is missing or damaged, or a tensor is
            not there whole.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    metadata = _read_plan(path)
    paths = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
    wanted = {
        name: stored
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata) and str(_place(paths, name)[0]) not in _NOT_WEIGHTS
    }
    _check_files(path, metadata, wanted)

    class Reader(FileSystemReader):
        """With the plan that was read above."""

        def read_metadata(self, *_: Any, **__: Any) -> Any:
            return metadata

    try:
        tensors = {name: torch.zeros(stored.size, dtype=stored.properties.dtype) for name, stored in wanted.items()}
        _load_state_dict(tensors, storage_reader=Reader(path), planner=DefaultLoadPlanner(), no_dist=True)
    except (Exception, CheckpointException) as error:  # zip and pickle raise their own, which torch may wrap
        failures = error.failures if isinstance(error, CheckpointException) else {}
        cause = next((failure for failure, _ in failures.values()), error)
        raise ModelError(
            f"{path} is damaged, or of a torch that this one cannot read ({first_line(cause, 120)}): {_CONVERT}"
        ) from error
    return _nested(tensors, paths)


_CONVERT = (
    "fetch it again, or turn it into one file where it was made: python -m torch.distributed.checkpoint.format_utils"
    " dcp_to_torch FOLDER model.pt."
)


class _PlanReader(pickle.Unpickler):
    """An unpickler that knows the classes of torch's plan, sizes, types and paths, and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAN_CLASSES:
            return getattr(importlib.import_module(module), name)
        if module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.memory_format)):
            return getattr(torch, name)
        if (module, name) == ("torch", "Size"):
            return torch.Size
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("pathlib", "pathlib._local") and name.endswith("Path"):
            return PurePosixPath  # where it was saved: of no interest
        raise RefusedError(f"{module}.{name}")


def _read_plan(path: Path) -> Any:
    where = path / METADATA_NAME
    try:
        metadata = _PlanReader(io.BytesIO(where.read_bytes())).load()
        complete = isinstance(metadata.state_dict_metadata, dict) and isinstance(metadata.storage_data, dict)
    except RefusedError as error:
        raise ModelError(
            f"{where} names {error}, which can run code and is no part of torch's own plan of a checkpoint: if you"
            f" trust it, {_CONVERT.removeprefix('fetch it again, or ')}"
        ) from error
    except OSError as error:
        raise ModelError(f"Cannot read {where} ({error.strerror}): check path and rights.") from error
    except Exception as error:
        raise ModelError(f"{where} is damaged ({first_line(error, 120)}): {_CONVERT}") from error
    if not complete:
        raise ModelError(f"{where} says nothing of tensors and their files: {_CONVERT}")
    return metadata


def _check_files(path: Path, metadata: Any, wanted: Mapping[str, Any]) -> None:
    """Every tensor whole, in files of this folder: what is not there would be left as it was made, without a word."""
    names = {info.relative_path for index, info in metadata.storage_data.items() if index.fqn in wanted}
    outside = sorted(name for name in names if PurePosixPath(name).name != name or "\\" in name)
    if outside:
        raise ModelError(f"{path}: its index names files elsewhere ({outside[0]}): put all of them in this folder.")
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise ModelError(f"{path} lacks {missing[0]}, which its {METADATA_NAME} names: fetch all {len(names)} files.")
    for name, stored in wanted.items():
        if sum(math.prod(chunk.sizes) for chunk in stored.chunks) != math.prod(stored.size):
            raise ModelError(f"{path} holds only a part of {name}: it was not saved to its end; use an earlier one.")


def _place(paths: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """Where a tensor was in the nested dictionaries that were saved."""
    return tuple(paths.get(name) or (name,))


def _nested(tensors: Mapping[str, Tensor], paths: Mapping[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *outer, last = (str(part) for part in _place(paths, name))
        inner = raw
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = tensor
    return raw
