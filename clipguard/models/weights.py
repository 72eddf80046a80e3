"""Read a weight file without ever running code from it: hash, tensors, and what the file says about itself."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from clipguard.errors import ModelError, first_line

METADATA_KEYS = ("input_resolution", "context_length", "vocab_size")  # only OpenAI's files carry these
_IMAGE_TOWER_WRAPPERS = ("vision_encoder_state_dict", "partial_state_dict", "modules")  # TeCoA, AdvFLYP, AGFT


@dataclass(frozen=True)
class Release:
    """A weight file published for open_clip whose hash its download address contains."""

    name: str  # "ViT-B-32:openai"
    hash_prefix: str  # lower-case hexadecimal; all 64 digits for OpenAI's files, 8 for LAION's
    quick_gelu: bool


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a weight file, and the marks in it that tell where it came from."""

    path: Path
    sha256: str
    tensors: dict[str, torch.Tensor]
    is_torchscript: bool = False
    metadata_keys: tuple[str, ...] = ()


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

    found: dict[str, Release] = {}
    for architecture, tag in open_clip.list_pretrained():
        config = get_pretrained_cfg(architecture, tag)
        match = re.search(r"/([0-9a-f]{64})/[^/]+$|-([0-9a-f]{8})\.pth?$", config.get("url", ""))
        if match:
            prefix = match[1] or match[2]
            found.setdefault(prefix, Release(f"{architecture}:{tag}", prefix, bool(config.get("quick_gelu", False))))
    return tuple(found.values())


def find_release(sha256: str) -> Release | None:
    """The published file with this hash, or None."""
    return next((r for r in known_releases() if sha256.startswith(r.hash_prefix)), None)


def read_weights(path: Path, quick_gelu_twin: str | None = None) -> WeightFile:
    """Read a safetensors file, a `torch.save` file or one of OpenAI's TorchScript releases onto the CPU.

    `{"state_dict": ...}` wrappers, `module.` prefixes and OpenAI's three metadata entries are taken off.

    Args:
        path: the file.
        quick_gelu_twin: the architecture to recommend when a TorchScript archive must be refused, because OpenAI's
            weights come in that format and the architecture the user named has plain GELU.

    Raises:
        ModelError: for a missing, corrupt or truncated file, one that needs code to be run, one whose content is
            not a flat dictionary of tensors, or one with a NaN or an infinity.
    """
    try:
        sha256 = hash_file(path)
    except OSError as error:
        raise ModelError(f"Cannot read the weight file {path} ({error.strerror}): check path and rights.") from error
    torchscript = _is_torchscript(path)
    if torchscript:
        raw = _read_torchscript(path, sha256, quick_gelu_twin)
    elif path.suffix == ".safetensors":
        raw = _read_safetensors(path)
    else:
        raw = _read_pickle(path)
    tensors = _unwrap(raw, path)
    metadata = tuple(key for key in METADATA_KEYS if tensors.pop(key, None) is not None)
    check_finite(tensors, path)
    return WeightFile(path, sha256, tensors, torchscript, metadata)


def _is_torchscript(path: Path) -> bool:
    """The same test as torch's own: a zip archive with a `constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _read_torchscript(path: Path, sha256: str, quick_gelu_twin: str | None) -> Any:
    """A TorchScript archive is a program, and loading it may run parts of it: only OpenAI's own files are trusted."""
    release = find_release(sha256)
    if release is None or len(release.hash_prefix) != 64:
        twin = f", with {quick_gelu_twin} if it comes from OpenAI's weights" if quick_gelu_twin else ""
        raise ModelError(
            f"{path} is a TorchScript archive, which can run code when loaded, and by its SHA-256 not one of OpenAI's"
            f" releases: save only its state_dict() (as safetensors) where you trust it, and load that{twin}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces TorchScript's deprecation
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())  # type: ignore[no-untyped-call]


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except Exception as error:  # the Rust reader's error type is not public in all versions
        raise ModelError(_corrupt(path, "safetensors file", first_line(error, 120))) from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt files raise KeyError, EOFError, RuntimeError, UnpicklingError ...
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused or _starts_as_pickle(path):
            what = f"the Python object {refused[1]}" if refused else "more than plain tensors"
            raise ModelError(
                f"{path} needs {what}, and clipguard does not load it because that can run code: save only the"
                " state_dict (best as safetensors) and load that."
            ) from error
        # Not torch's own text: it advises weights_only=False.
        raise ModelError(_corrupt(path, "PyTorch checkpoint", "torch cannot read it")) from error


def _starts_as_pickle(path: Path) -> bool:
    """Whether an unreadable file is a bare pickle (protocol 2 or later) and not simply something else."""
    with path.open("rb") as stream:
        head = stream.read(2)
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _corrupt(path: Path, kind: str, reason: str) -> str:
    reason = reason if path.stat().st_size else "it is empty"
    return f"{path} is corrupt, truncated or not a {kind} ({reason}): fetch or save it again."


def _unwrap(raw: Any, path: Path) -> dict[str, torch.Tensor]:
    """The flat tensor dictionary inside a loaded file.

    Raises:
        ModelError: when there is none, or when it is a fine-tuning checkpoint of the image tower alone.
    """
    if isinstance(raw, Mapping) and isinstance(raw.get("state_dict"), Mapping) and raw["state_dict"]:
        raw = raw["state_dict"]
    if not isinstance(raw, Mapping) or not raw:
        raise ModelError(f"{path} holds no state dict but {type(raw).__name__}: save model.state_dict() and load that.")
    wrapper = next((key for key in _IMAGE_TOWER_WRAPPERS if isinstance(raw.get(key), Mapping)), None)
    if wrapper:
        raise ModelError(
            f"{path} holds an image tower alone (under {wrapper!r}): load it into the full CLIP model it was tuned"
            " from, save that model's state_dict() and load that."
        )
    others = [str(key) for key, value in raw.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelError(
            f"{path} is not a state dict: {shorten(others)} {'is' if len(others) == 1 else 'are'} not tensors; save"
            ' model.state_dict(), bare or under "state_dict".'
        )
    prefixed = all(str(key).startswith("module.") for key in raw)
    return {str(key).removeprefix("module.") if prefixed else str(key): value for key, value in raw.items()}


def check_finite(tensors: dict[str, torch.Tensor], path: Path) -> None:
    # float(): half and 8-bit types lack some reductions on the CPU.
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t.float()).all())]
    if bad:
        raise ModelError(f"{path} has NaN or infinite weights in {shorten(bad)}: the training diverged or the file"
                         " is damaged; use another checkpoint.")  # fmt: skip


def shorten(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
