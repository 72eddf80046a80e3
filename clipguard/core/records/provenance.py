"""Where a result came from: versions, machine, data fingerprints."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, TypedDict

import PIL.Image

from clipguard.core.version import __version__

if TYPE_CHECKING:
    from typing_extensions import NotRequired

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "pyautoattack", "datasets", "numpy", "pillow")


class Machine(TypedDict):
    """`run.machine` of the result files."""

    platform: str
    device: str
    threads: int
    gpu: NotRequired[str]


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    return {"clipguard": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def machine(device: str) -> Machine:
    """What a run on this device runs on."""
    import torch

    description: Machine = {
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        description["gpu"] = torch.cuda.get_device_name(device)
    return description


def image_hash(image: PIL.Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels: the same for any container that decodes to the same picture."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def fingerprint(class_names: list[str], rows: list[tuple[int, int, str]]) -> str:
    """SHA-256 of what was evaluated, as 64 hexadecimal digits.

    Args:
        class_names: C names.
        rows: (index, label, `image_hash`) of every image.
    """
    digest = hashlib.sha256("\n".join(class_names).encode())
    for index, label, image in rows:
        digest.update(f"\n{index} {label} {image}".encode())
    return digest.hexdigest()
