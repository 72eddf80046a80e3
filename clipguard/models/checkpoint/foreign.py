"""What a file is that is not what its name says (a web page, a Git LFS pointer, an archive), and JSON configs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from clipguard.core.errors import ModelError

_AGAIN = "fetch the file itself"
_UNPACK = "unpack it, and give the weight file inside"
# Where a mark of the content stands (bytes from its beginning), the mark, what the content is, and the cure.
_MARKS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs.github.com", "a Git LFS pointer, not the file itself",
     "run git lfs pull where it was cloned"),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a rar archive", _UNPACK),
    (0, b"GGUF", "a GGUF file (llama.cpp)", "give the PyTorch or safetensors weights that it was made from"),
    (0, b"\x89HDF", "an HDF5 file (Keras, TensorFlow)", "give the PyTorch or safetensors weights"),
    (0, b"\x93NUMPY", "a numpy array", "save the state_dict with torch.save or as safetensors"),
    (0, b"\x89PNG", "an image", "give a weight file"),
    (0, b"\xff\xd8\xff", "an image", "give a weight file"),
    (0, b"%PDF", "a PDF document", "give a weight file"),
    (257, b"ustar", "a tar archive", _UNPACK),
    (4, b"TFL3", "a TensorFlow Lite model", "give the PyTorch or safetensors weights"),
)  # fmt: skip
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")


def describe_foreign(path: Path) -> str | None:
    """`"a web page ..., not weights: fetch ..."`: what the file is, and the cure; None if it is nothing known."""
    if path.suffix == ".distcp":
        return "one part of a checkpoint of torch.distributed: give its folder, with its .metadata"
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not head:
        return f"empty: {_AGAIN}"
    text = _describe_text(head, path)
    if text is not None:
        return text
    return _describe_zip(path) if zipfile.is_zipfile(path) else _describe_binary(head, path)


def _describe_text(head: bytes, path: Path) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:16].lower().startswith(_PAGES):
        return (
            "a web page (of a sign-in, a licence to accept, or an error), not the file itself: open the address in a"
            " browser, and download the file behind it"
        )
    if text.startswith((b"{", b"[")):
        return f"JSON text, not weights: give the weight file, or local-dir:{path.parent} for a folder with its config"
    if b"/annex/objects/" in head[:200]:
        return "a git-annex pointer, not the file itself: run git annex get where it was cloned"
    return None


def _describe_binary(head: bytes, path: Path) -> str | None:
    for offset, mark, what, cure in _MARKS:
        if head.startswith(mark, offset):
            return f"{what}: {cure}"
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head[:64])):
        return "an ONNX model: give the PyTorch or safetensors weights that it was made from"
    return None


def _describe_zip(path: Path) -> str | None:
    """None for what torch.save writes."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(PurePosixPath(name).name == "data.pkl" for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a numpy archive (.npz): save the state_dict with torch.save or as safetensors"
    some = ", ".join(names[:3])
    return f"a zip archive ({some}{' ...' if names[3:] else ''}) without PyTorch's data.pkl: {_UNPACK}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a config file.

    Raises:
        ModelError: when it cannot be read, says what it is instead of JSON, or is no object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelError(f"Cannot read {path} ({error.strerror}): check path and rights.") from error
    except ValueError as error:
        what = describe_foreign(path)
        if what and "JSON" not in what:
            raise ModelError(f"{path} is {what}.") from error
        raise ModelError(f"{path} is not valid JSON ({error}): mend it or fetch it again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object: fetch it again.")
    return config
