"""Tuned text that no text tower holds: a map of prompt embeddings, kept in a file beside a model's weights.

A fine-tuning run leaves up to two files in a model folder. `clipguard_text.safetensors` is a map that open_clip knows
nothing of: it loads such a folder with the original text. `original_text.safetensors` holds the original values of the
parameters that were tuned, so that the same image tower can be scored with the original text.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.core.errors import ModelError, first_line
from clipguard.models.checkpoint.reader import check_finite, hash_file

TEXT_FILE = "clipguard_text.safetensors"
ORIGINAL_FILE = "original_text.safetensors"
TextChoice = Literal["tuned", "original"]


class TextMap(nn.Module, ABC):
    """From the unit embeddings (C, T, D) of every class's prompts to tuned ones; a subclass says how."""

    kind: ClassVar[str]

    @abstractmethod
    def forward(self, prompts: Tensor, class_names: Sequence[str]) -> Tensor:
        """(C, T, D) or (C, 1, D) unit rows."""

    def to_bytes(self) -> bytes:
        """The content of `clipguard_text.safetensors`."""
        from safetensors.torch import save

        return save({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, self._metadata())

    def _metadata(self) -> dict[str, str]:
        return {"kind": self.kind}


class LinearMap(TextMap):
    """t = norm(t0 (I + W)), W (D, D), zero at first."""

    kind = "linear"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size))

    def forward(self, prompts: Tensor, class_names: Sequence[str]) -> Tensor:  # noqa: ARG002
        """(C, T, D) unit rows."""
        return F.normalize(prompts + prompts @ self.weight, dim=-1)


class LaatMap(TextMap):
    """LAAT's expansion (Li et al., CVPR 2024, arXiv 2301.13096), as its code computes it, for any class name.

    Every embedding moves away from a pole along its great circle, its angle to it stretched by pi / (2 widest):
    t = cos(theta) pole + sin(theta) u, u the unit vector across the pole towards t0. The pole is the mean direction of
    the training prompts and `widest` their largest angle to it, so that the farthest of them lands at 90 degrees.
    """

    kind = "laat"
    pole: Tensor
    widest: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("pole", torch.zeros(size))
        self.register_buffer("widest", torch.tensor(math.pi / 2))

    @torch.no_grad()
    def fit(self, prompts: Tensor) -> LaatMap:
        """Take pole and widest angle from training prompts (C, T, D)."""
        self.pole = F.normalize(prompts.flatten(0, 1).mean(dim=0), dim=0)
        self.widest = self._angle(prompts)[0].max()
        return self

    def forward(self, prompts: Tensor, class_names: Sequence[str]) -> Tensor:  # noqa: ARG002
        """(C, T, D) unit rows."""
        angle, across = self._angle(prompts)
        stretched = (angle * math.pi / (2 * self.widest)).unsqueeze(-1)
        return stretched.cos() * self.pole + stretched.sin() * F.normalize(across, dim=-1)

    def _angle(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """(C, T) angles to the pole and (C, T, D) components across it."""
        along = prompts @ self.pole
        across = prompts - along.unsqueeze(-1) * self.pole
        return torch.atan2(across.norm(dim=-1), along), across


class TableMap(TextMap):
    """One free vector per training class; there is none for any other class. Templates have no effect."""

    kind = "table"

    def __init__(self, size: int, class_names: Sequence[str]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(len(class_names), size))
        self.class_names = tuple(class_names)

    def forward(self, prompts: Tensor, class_names: Sequence[str]) -> Tensor:  # noqa: ARG002
        """(C, 1, D) unit rows.

        Raises:
            ModelError: for a class that was not trained.
        """
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown:
            raise ModelError(
                f"This model's text is a table of its {len(self.class_names)} training classes, without {unknown[0]!r}:"
                " score it with `text=original`, or train with text=head or text=encoder."
            )
        indices = [self.class_names.index(name) for name in class_names]
        return F.normalize(self.rows[indices].unsqueeze(1), dim=-1)

    def _metadata(self) -> dict[str, str]:
        return {"kind": self.kind, "class_names": json.dumps(self.class_names)}


class AppliedText(NamedTuple):
    """Which text a loaded model has."""

    description: str  # for people, and the result files
    sha256: str | None = None  # of the file beside the weights that it is from
    text_map: TextMap | None = None  # to be applied to the embeddings of prompts


def apply_text(model: nn.Module, folder: Path, size: int, choice: TextChoice, name: str) -> AppliedText:
    """Give a model the text asked for, of what a fine-tuning run left beside its weights in `folder`.

    Args:
        model: with the weights that lie there; its tuned text parameters are put back for "original".
        folder: the weights'.
        size: of the embeddings.
        choice: see `load_model`.
        name: the model, for messages.

    Raises:
        ModelError: when there is no original text, or a file of it is damaged.
    """
    tuned, original = folder / TEXT_FILE, folder / ORIGINAL_FILE
    if choice == "original":
        if original.is_file():
            restore_original(model, original)
            return AppliedText(f"original, from {original.name}", hash_file(original))
        if tuned.is_file():
            return AppliedText(f"original, without {tuned.name}")
        raise ModelError(f"{name} has no original text beside its own: clipguard did not tune its text.")
    if tuned.is_file():
        text_map = read_text_map(tuned, size)
        return AppliedText(f"tuned, by the {text_map.kind} map in {tuned.name}", hash_file(tuned), text_map)
    return AppliedText("tuned, in the weights" if original.is_file() else "as in the weights")


def read_text_map(path: Path, size: int) -> TextMap:
    """The frozen map in a file, for embeddings of `size` dimensions.

    Raises:
        ModelError: when the file is damaged, or its map is of no known kind or of another size.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        text_map = _empty_map(metadata, size)
        text_map.load_state_dict(tensors)
    except Exception as error:  # the Rust reader's error type is not public in all versions; KeyError, RuntimeError
        raise ModelError(
            f"{path} is no text map for this model ({first_line(error)}): export the model again."
        ) from error
    check_finite(tensors, path)
    return text_map.requires_grad_(False)


def _empty_map(metadata: dict[str, str], size: int) -> TextMap:
    if metadata["kind"] == TableMap.kind:
        return TableMap(size, json.loads(metadata["class_names"]))
    return {LinearMap.kind: LinearMap, LaatMap.kind: LaatMap}[metadata["kind"]](size)


def restore_original(model: nn.Module, path: Path) -> None:
    """Put the original values of tuned text parameters back.

    Raises:
        ModelError: when the file is damaged or does not fit the model.
    """
    from safetensors.torch import load_file

    try:
        original = load_file(path)
        unexpected = model.load_state_dict(original, strict=False).unexpected_keys
    except Exception as error:
        raise ModelError(f"{path} does not fit this model ({first_line(error)}): export the model again.") from error
    if unexpected:
        raise ModelError(f"{path} does not fit this model (no parameter {unexpected[0]}): export the model again.")
    check_finite(original, path)
