"""Read a weight file without ever running code from it: hash, tensors, and what the file says about itself."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from clipguard.core.errors import ModelError, first_line
from clipguard.models.checkpoint.contents import Contents, find_contents, shorten
from clipguard.models.checkpoint.distributed import read_distributed
from clipguard.models.checkpoint.foreign import describe_foreign
from clipguard.models.checkpoint.shards import (
    distributed_files,
    explain_shard,
    is_distributed,
    is_index,
    is_shard,
    read_index,
    read_total_size,
)
from clipguard.models.checkpoint.unpickler import RefusedError, read_archive

log = logging.getLogger("clipguard")
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's format before 1.6 begins
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file
Container = Literal["safetensors", "torch.save", "TorchScript", "torch.distributed"]


@dataclass(frozen=True)
class Release:
    """A weight file published for open_clip whose hash its download address contains."""

    name: str  # "ViT-B-32:openai"
    hash_prefix: str  # lower-case hexadecimal; all 64 digits for OpenAI's files, 8 for LAION's
    quick_gelu: bool


@dataclass(frozen=True)
class WeightFile:
    """A weight file that was read."""

    path: Path
    sha256: str  # of several files: of their SHA-256 in the order of their names
    container: Container
    contents: Contents
    parts: tuple[Path, ...] = ()  # the files that the weights are in: itself, or those that an index names

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights under open_clip's names, an image tower's with "visual."."""
        return self.contents.tensors


def hash_file(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


@cache
def known_releases() -> tuple[Release, ...]:
    """The published weight files whose hash is known, from the download addresses in open_clip's list of weights."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    releases: dict[str, Release] = {}
    for architecture, tag in open_clip.list_pretrained():
        config = get_pretrained_cfg(architecture, tag)
        match = re.search(r"/([0-9a-f]{64})/[^/]+$|-([0-9a-f]{8})\.pth?$", config.get("url", ""))
        if match:
            prefix = match[1] or match[2]
            releases.setdefault(prefix, Release(f"{architecture}:{tag}", prefix, bool(config.get("quick_gelu", False))))
    return tuple(releases.values())


def find_release(sha256: str) -> Release | None:
    """The published file with this hash, or None."""
    return next((r for r in known_releases() if sha256.startswith(r.hash_prefix)), None)


def read_weights(path: Path, entry: str = "") -> WeightFile:
    """Read safetensors, `torch.save` or TorchScript files onto the CPU, without running code from them.

    Args:
        path: the file, whatever its name ends with, the index of several, or the folder of torch.distributed.
        entry: which of several state dicts in it is meant; see `find_contents`.

    Raises:
        ModelError: for a missing, corrupt or truncated file, one that needs code to be run, one whose content is
            not a dictionary of tensors, or one with a NaN or an infinity.
    """
    places = read_index(path) if is_index(path) else {}
    several = distributed_files(path) if is_distributed(path) else tuple(sorted(set(places.values())))
    parts = several or (path,)
    if not places and is_shard(path):
        raise ModelError(explain_shard(path))
    try:
        hashes = [hash_file(part) for part in parts]
    except OSError as error:
        raise ModelError(f"Cannot read the weight file {path} ({error.strerror}): check path and rights.") from error
    sha256 = hashes[0] if len(parts) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    container, raw = _read_parts(path, places, parts) if places else _read(path)
    contents = find_contents(raw, path, entry)
    check_finite(contents.tensors, path)
    return WeightFile(path, sha256, container, contents, parts)


def _read_parts(index: Path, places: Mapping[str, Path], parts: Sequence[Path]) -> tuple[Container, Any]:
    """All tensors of the files that an index names."""
    raw: dict[Any, Any] = {}
    for part in parts:
        container, content = _read(part)
        if not isinstance(content, Mapping):
            raise ModelError(f"{part} holds no tensors but {type(content).__name__}: fetch it again.")
        raw.update(content)
    lost = [name for name in places if name not in raw]
    if lost:
        raise ModelError(
            f"{places[lost[0]]} lacks {shorten(lost)}, which {index.name} places there: they are of different models;"
            " fetch all of them again."
        )
    _compare_size(index, sum(raw[name].nbytes for name in places if isinstance(raw[name], torch.Tensor)))
    return container, raw


def _compare_size(index: Path, found: int) -> None:
    """Warn where an index has another size of all tensors than its files.

    It is no error: published indexes keep the size of before a conversion to another type, and transformers does not
    compare it either. A file that is cut, or lacks a tensor, is refused without it.
    """
    said = read_total_size(index)
    if said is not None and said != found:
        log.warning(
            "%s says that the tensors of its files take %s bytes, and they take %s: they were converted after it was "
            "written, or are of different models",
            index,
            f"{said:,}",
            f"{found:,}",
        )


def read_plain(path: Path) -> Any:
    """The content of one file, whatever it holds: containers, plain values and CPU tensors, without running code of it.

    Raises:
        ModelError: for a corrupt file, and one that needs code to be run.
    """
    return _read(path)[1]


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors; of any other file, none."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception:  # the Rust reader's error type is not public in all versions; whoever reads tensors says more
        return {}


def _read(path: Path) -> tuple[Container, Any]:
    """The content of a file, by what it is and not by what its name ends with."""
    if path.is_dir():
        return "torch.distributed", read_distributed(path)
    if _is_torchscript(path):
        return "TorchScript", _read_archive(path, "TorchScript archive")
    foreign = describe_foreign(path)
    if foreign is not None:
        raise ModelError(f"{path} is {foreign}.")
    if _is_safetensors(path):
        return "safetensors", _read_safetensors(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:  # of a path, torch looks at the suffix
            warnings.simplefilter("ignore")
            return "torch.save", torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt files raise KeyError, EOFError, RuntimeError, UnpicklingError ...
        if zipfile.is_zipfile(path):  # more than plain tensors, or damaged
            return "torch.save", _read_archive(path, "PyTorch checkpoint")
        if path.suffix == ".safetensors" and not _starts_as_pickle(path):
            raise ModelError(_corrupt(path, "safetensors file", "it does not begin as one")) from error
        raise ModelError(_explain_pickle(path, error)) from error


def _is_safetensors(path: Path) -> bool:
    """Whether it begins with the length of a JSON object and that object."""
    with path.open("rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _is_torchscript(path: Path) -> bool:
    """The same test as torch's own: a zip archive with a `constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _read_archive(path: Path, kind: str) -> Any:
    try:
        return read_archive(path)
    except RefusedError as error:
        raise ModelError(
            f"{path} names {error}, which can run code and which no checkpoint needs: do not load it anywhere; fetch"
            " the weights from a source you trust, or save only the state_dict (best as safetensors)."
        ) from error
    except Exception as error:
        raise ModelError(_corrupt(path, kind, first_line(error, 120))) from error


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except Exception as error:  # the Rust reader's error type is not public in all versions
        raise ModelError(_corrupt(path, "safetensors file", first_line(error, 120))) from error


def _explain_pickle(path: Path, error: Exception) -> str:
    """The message for a file of torch's old format (before 1.6), or a bare pickle, that is not plain tensors."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused or _starts_as_pickle(path):
        what = f"the Python object {refused[1]}" if refused else "more than plain tensors"
        return (
            f"{path} needs {what}, and clipguard does not load it because that can run code: save only the"
            " state_dict (best as safetensors) and load that."
        )
    # Not torch's own text: it advises weights_only=False.
    return _corrupt(path, "PyTorch checkpoint", "torch cannot read it")


def _starts_as_pickle(path: Path) -> bool:
    """Whether an unreadable file is a bare pickle (protocol 2 or later) and not simply something else."""
    with path.open("rb") as stream:
        head = stream.read(len(_OLD_MAGIC))
    return len(head) >= 2 and head != _OLD_MAGIC and head[0] == 0x80 and 2 <= head[1] <= 5


def _corrupt(path: Path, kind: str, reason: str) -> str:
    return f"{path} is corrupt, truncated or not a {kind} ({reason}): fetch or save it again."


def check_finite(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Raise ModelError, naming the file, where a weight is NaN or infinite."""
    # float(): half and 8-bit types lack some reductions on the CPU.
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t.float()).all())]
    if bad:
        raise ModelError(f"{path} has NaN or infinite weights in {shorten(bad)}: the training diverged or the file"
                         " is damaged; use another checkpoint.")  # fmt: skip
