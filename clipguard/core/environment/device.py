"""The device that a run is on."""

from __future__ import annotations

import os

import torch

from clipguard.core.environment.allocator import keep_memory
from clipguard.core.errors import ModelError


def choose_device(name: str) -> str:
    """The name of a device that is there; for a CPU the allocator is told to keep memory.

    Args:
        name: a torch device, or "auto": CUDA if there is one, else the CPU.

    Raises:
        ModelError: when torch cannot put a tensor there.
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = automatic if name == "auto" else str(check_device(name))
    if device == "cpu":
        keep_memory()
    return device


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device(device: str | torch.device) -> torch.device:
    """The torch device of that name, if this machine has it.

    Raises:
        ModelError: when torch cannot put a tensor there.
    """
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except Exception as error:  # unknown name, no driver, no such index: RuntimeError, AssertionError ...
        raise ModelError(f"`device` {str(device)!r} cannot be used on this machine: try cpu.") from error
    return target
