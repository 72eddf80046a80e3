"""Where a result came from: versions, machine, data fingerprints."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import Any

import PIL.Image

from clipguard.core.version import __version__

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "pyautoattack", "datasets", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    return {"clipguard": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def machine(device: str) -> dict[str, Any]:
    """What the run ran on."""
    import torch

    found: dict[str, Any] = {"platform": platform.platform(), "device": device, "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def image_hash(image: PIL.Image.Image) -> str:
    """SHA-256 of an image's size and RGB pixels: the same for any container that decodes to the same picture."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def fingerprint(class_names: list[str], rows: list[tuple[int, int, str]]) -> str:
    """SHA-256 of the class names and of (index, label, image hash) of every image evaluated."""
    digest = hashlib.sha256("\n".join(class_names).encode())
    for index, label, image in rows:
        digest.update(f"\n{index} {label} {image}".encode())
    return digest.hexdigest()
