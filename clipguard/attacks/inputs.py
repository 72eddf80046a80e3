"""Are values from Python images and labels, and does the model take them? If not, what would?"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clipguard.attacks.engine.passes.batching import is_out_of_memory
from clipguard.attacks.threat import NORMS
from clipguard.core.errors import AttackError, ClipguardError, first_line

Array = npt.NDArray[Any]


def check_input(
    model: nn.Module, images: Tensor | Array, labels: Tensor | Array | Sequence[int], norm: str
) -> tuple[Tensor, Tensor]:
    """Images and labels as tensors.

    Args:
        model: in eval mode, on the images' device.
        images: (N, C, H, W) floating-point numbers in [0,1], N at least 1.
        labels: (N,) class numbers.
        norm: "linf" or "l2".

    Returns:
        Images (N, C, H, W) of their own type, and labels (N,) int64.

    Raises:
        AttackError: for an unknown norm, images and labels that are no pairs, and a model that is no module, or on
            another device.
    """
    if norm not in NORMS:
        raise AttackError(f"Unknown norm {norm!r}; use one of {', '.join(NORMS)}.")
    pixels, numbers = _images(images), _labels(labels)
    if len(pixels) == 0 or len(pixels) != len(numbers):
        raise AttackError(f"{len(pixels)} images and {len(numbers)} labels; give as many of both, at least one.")
    check_model(model, pixels)
    low, high = (float(end) for end in pixels.detach().aminmax())
    if low >= 0 and 2 < high <= 255:
        raise AttackError(f"Images must lie in [0,1], and theirs go up to {high:g}: give images / 255.")
    return pixels, numbers


def check_model(model: Any, images: Tensor) -> None:
    """Is it a module on the device of the images?

    Raises:
        AttackError: if not.
    """
    if not isinstance(model, nn.Module):
        cure = "put what it does into a module's forward"
        if hasattr(model, "classifier") and hasattr(model, "preprocess"):  # a LoadedModel
            cure = "give its classifier(class_names, templates)"
        raise AttackError(f"The model must be a torch.nn.Module, not {type(model).__name__}: {cure}.")
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if devices and images.device not in devices:
        there = sorted(map(str, devices))[0]
        raise AttackError(f"The model is on {there} and the images on {images.device}; give images.to({there!r}).")


def _images(value: Any) -> Tensor:
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    images = torch.from_numpy(value if value.flags.writeable else value.copy()) if is_array else value
    if not isinstance(images, Tensor):
        what = f"a {type(value).__name__}" + (f" of {value.dtype}" if isinstance(value, np.ndarray) else "")
        raise AttackError(f"Images must be a tensor (N, C, H, W) in [0,1], not {what}: give torch.stack of tensors.")
    if images.ndim != 4:
        cure = "images[None]" if images.ndim == 3 else "a batch of images"
        raise AttackError(f"Images must be (N, C, H, W), not {tuple(images.shape)}: give {cure}.")
    _, channels, height, last = images.shape
    if last in (1, 3, 4) and channels > 4 and height > 4:
        raise AttackError(
            f"Images must be (N, C, H, W), and {tuple(images.shape)} has its channels last: "
            "give images.permute(0, 3, 1, 2)."
        )
    if not images.is_floating_point():
        raise AttackError(f"Images must be numbers in [0,1], not {images.dtype}: give images.float() / 255.")
    return images


def _labels(value: Any) -> Tensor:
    try:
        labels = torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value)  # it may be read-only
    except (TypeError, ValueError, RuntimeError):
        raise AttackError(f"Labels must be class numbers (N,), not {type(value).__name__}.") from None
    if labels.ndim != 1:
        column = labels.shape[1:] == (1,)
        cure = "labels.squeeze(1)" if column else "labels.argmax(dim=1)" if labels.ndim == 2 else "one number an image"
        raise AttackError(f"Labels must be class numbers (N,), not {tuple(labels.shape)}: give {cure}.")
    whole = labels.long() if not labels.is_complex() else labels
    if labels.dtype == torch.bool or (len(labels) and not torch.equal(whole.to(labels.dtype), labels)):
        cure = "labels.long()" if labels.dtype == torch.bool else "whole numbers"
        raise AttackError(f"Labels must be class numbers (N,), not {labels.dtype}: give {cure}.")
    return whole


@contextmanager
def explained(model: nn.Module, images: Tensor) -> Iterator[None]:
    """A context in which failures of the model itself are told in one line; what is not its doing stays as it is.

    Raises:
        AttackError: where the model fails on the images (N, C, H, W).
    """
    try:
        yield
    except Exception as error:
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        in_model = any(frame.f_locals.get("self") is model for frame in frames)
        if isinstance(error, ClipguardError) or is_out_of_memory(error) or not in_model:
            raise
        kinds = {p.dtype for p in model.parameters()} - {torch.float32}
        hint = f" Its weights are {kinds.pop()}, and images come as float32: give model.float()." if kinds else ""
        shape = ("B", *images.shape[1:])
        text = ", ".join(map(str, shape))
        raise AttackError(f"The model fails on images ({text}): {first_line(error)}.{hint}") from error
