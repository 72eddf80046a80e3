"""How much memory this process has taken at most."""

from __future__ import annotations

import sys

MIB = 2**20


def watch_memory(device: str) -> None:
    """Begin to watch a GPU's memory; that of the process is watched from its start."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> dict[str, float | None]:
    """MiB: `host`, None where the system does not tell, and `gpu` since `watch_memory`, None where there is none."""
    gpu: float | None = None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.max_memory_reserved(device) / MIB
    host: float | None = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 2**10
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
    return {name: None if value is None else round(value) for name, value in (("host", host), ("gpu", gpu))}
