"""Weights in several files: an index (`model.safetensors.index.json`) that says which of them holds which tensor.

Or a folder of torch.distributed, which `distributed.py` reads.
"""

from __future__ import annotations

import re
from pathlib import Path

from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.foreign import read_json

INDEX_SUFFIX = ".index.json"
METADATA_NAME = ".metadata"  # of torch.distributed: the index
PART_SUFFIX = ".distcp"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")


def is_index(path: Path) -> bool:
    """Whether the name is an index's: `model.safetensors.index.json`, or `model.safetensors.index.fp16.json`."""
    return bool(re.search(r"\.index(\.\w+)?\.json$", path.name))


def is_shard(path: Path) -> bool:
    """Whether the name is that of one of several files: `model-00001-of-00002.safetensors`."""
    match = _SHARD.fullmatch(path.name)
    return match is not None and int(match[3]) > 1


def is_distributed(path: Path) -> bool:
    """Whether it is a folder with a checkpoint of torch.distributed."""
    return path.is_dir() and (path / METADATA_NAME).is_file()


def distributed_files(path: Path) -> tuple[Path, ...]:
    """The files that such a checkpoint is in."""
    return (path / METADATA_NAME, *sorted(path.glob(f"*{PART_SUFFIX}")))


def read_index(path: Path) -> dict[str, Path]:
    """The file of every tensor that an index names.

    Raises:
        ModelError: when it is no index, or a file that it names is not beside it.
    """
    weight_map = _weight_map(path)
    names = read_index_names(path)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{path} names {len(names)} files, and {missing[0]}"
            f"{f' and {len(missing) - 1} more are' if missing[1:] else ' is'} not beside it: fetch all of them."
        )
    return {tensor: path.parent / name for tensor, name in weight_map.items()}


def read_index_names(path: Path) -> list[str]:
    """The names of the files of an index.

    Raises:
        ModelError: when it is no index, or names files elsewhere.
    """
    names = sorted(set(_weight_map(path).values()))
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{path} names files in other folders: put all of them beside it.")
    return names


def read_total_size(path: Path) -> int | None:
    """How many bytes the tensors of an index are, as it says itself; None where it says nothing."""
    metadata = read_json(path).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f'{path} has no "weight_map": it is no index of weights, or damaged; fetch it again.')
    return {str(tensor): str(name) for tensor, name in weight_map.items()}


def explain_shard(path: Path) -> str:
    """What to give instead of one of several files."""
    match = _SHARD.fullmatch(path.name)
    assert match is not None
    what = f"{path} is number {int(match[2])} of the {int(match[3])} files of a model"
    indices = sorted(other for other in path.parent.iterdir() if is_index(other))
    if not indices:
        index = f"{match[1]}{match[4]}{INDEX_SUFFIX}"
        return f"{what}: fetch all of them and their index, {index}, into one folder, and give that folder or index."
    return f"{what}: give local-dir:{path.parent} if its config is there, or else their index, {indices[0]}."
