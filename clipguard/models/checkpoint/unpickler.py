"""Read the tensors of a zip-format PyTorch file (torch.save, TorchScript) as data: no object of it is ever made.

A pickle is a program that may name any Python callable. Here the only names that mean anything are those of tensors and
plain containers; every other class or function becomes an `Inert` stand-in that keeps its state and does nothing, so
that a checkpoint whose optimizer holds numpy scalars, or whose settings are an `argparse.Namespace`, can be read. Names
that serve an attack and no checkpoint are refused.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

# Any of these in a checkpoint is an attack, and the user should know. Safety does not rest on this list: what is not
# on it is replaced, too.
_ATTACK_MODULES = ("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "ctypes", "importlib", "runpy", "pty",
            "webbrowser", "builtins", "__builtin__", "operator", "pickle", "marshal", "types", "torch.hub", "torch.jit",
            "torch.serialization")  # fmt: skip
_PLAIN_CONTAINERS = {"set": set, "frozenset": frozenset, "list": list, "dict": dict, "tuple": tuple}
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class RefusedError(Exception):
    """The file names something that no checkpoint needs; the message is that name."""


class Inert:
    """What stands in for an object of a file: its state, and no behaviour."""

    name = ""  # of the class or function in the file

    state: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: ARG004
        self = super().__new__(cls)
        self.state = {}
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[str(key)] = value

    def append(self, value: Any) -> None:
        """Nothing; the unpickler calls it for what the file says is a list."""

    def extend(self, values: Any) -> None:
        """Nothing, as `append`."""

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _TensorReader(pickle.Unpickler):
    """An unpickler that knows tensors and plain containers, and no other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")), encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            # Made anew each time: a file can set attributes of what it is given.
            return (lambda *args: _rebuild_tensor(*args)) if name == "_rebuild_tensor_v2" else (lambda data, *_: data)
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in ("builtins", "__builtin__") and name in _PLAIN_CONTAINERS:
            return _PLAIN_CONTAINERS[name]
        scripted = module == "torch.jit._pickle"  # TorchScript's lists of numbers
        if not scripted and any(module == bad or module.startswith(f"{bad}.") for bad in _ATTACK_MODULES):
            raise RefusedError(f"{module}.{name}")
        return type("Inert", (Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage ("storage", dtype, key, location, number of elements) as a tensor (N,)."""
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():
        raise ValueError("a tensor is larger than its storage")
    return torch.as_strided(storage, size, stride, offset)


def read_archive(path: Path) -> Any:
    """The content of a zip-format PyTorch file: containers, plain values, CPU tensors, and `Inert` for the rest.

    A TorchScript module becomes the dictionary of its tensors, named as in its state dict.

    Raises:
        RefusedError: for a name that only an attack needs.
        Exception: of many types, for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        roots = [str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == "data.pkl"]
        if not roots:
            raise ValueError("it has no data.pkl; open it where it was made, and save its state_dict() with torch.save")
        root = roots[0]
        order = f"{root}/byteorder"
        if order in names and archive.read(order).decode() != sys.byteorder:
            raise ValueError("it was written on a machine of the other byte order")
        content = _TensorReader(archive, root).load()
    return dict(_script_tensors(content)) if isinstance(content, Inert) else content


def _script_tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Inert):
            yield from _script_tensors(value, f"{prefix}{name}.")
