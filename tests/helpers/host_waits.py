"""Where code would make a GPU's host wait: counted on the CPU, where nothing waits."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"tolist", "numpy", "cpu", "item", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__contains__"}
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "is_nonzero", "equal.default")
OPTIMISERS = "torch/optim/"  # those on a GPU are fused: there the count of their steps is no number of the host's


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """The list of operations so far whose result, or its shape, the host has to know before it can go on."""
    found: list[str] = []

    def note(name: str) -> None:
        frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "host_waits" not in f.filename]
        if not any(OPTIMISERS in frame and "swa_utils" not in frame for frame in frames):
            found.append(f"{name} at {frames[-1]}")

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = str(func)
            by_mask = name.startswith(("aten.index.", "aten.index_put")) and any(map(_is_mask, args[1]))
            if by_mask or any(word in name for word in WAITING):
                note(name)
            return func(*args, **(kwargs or {}))

    class Methods(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if getattr(func, "__name__", "") in READS:
                note(func.__name__)
            return func(*args, **(kwargs or {}))

    with Operations(), Methods():
        yield found


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool
