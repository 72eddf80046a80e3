"""Prompts that were learned, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from clipguard.core.errors import ModelError
from clipguard.core.notices import notice
from clipguard.models.prompts.text import Layout, PromptTokens, encode_learned, make_tokens
from clipguard.models.text.encoding import Tokenizer

PROMPTS_NAME = "prompts.safetensors"
METADATA = "clipguard_prompts"  # its one key: safetensors writes several in a random order


@dataclass(frozen=True)
class PromptBase:
    """The model that prompts were learned on.

    Attributes:
        name: as it was typed.
        architecture: of open_clip.
        image_tower: SHA-256 of the image tower, without prompts.
        text_tower: the same of the text tower.
    """

    name: str
    architecture: str
    image_tower: str
    text_tower: str


@dataclass(frozen=True)
class LearnedPrompts:
    """Context vectors, and what is needed to put them into a model.

    Attributes:
        method: that learned them, for people.
        layout: of the prompts.
        context: (M, width), or (C, M, width) where each class has its own.
        deeper: (N, M, width), context of deeper blocks of the text tower, if any; see `encode_learned`.
        vision: (blocks, M, vision width), vectors among the patches, if any; see `VisionPrompts`.
        class_names: of class-specific context vectors, in their order; empty: not known, or the context is of no class.
        base: the model they were learned on; None: the file does not say.
        label: the file, for people.
        sha256: of the file.
    """

    method: str
    layout: Layout
    context: Tensor
    deeper: Tensor | None = None
    vision: Tensor | None = None
    class_names: tuple[str, ...] = ()
    base: PromptBase | None = None
    label: str = field(default="", compare=False)
    sha256: str = ""

    @property
    def class_specific(self) -> bool:
        """Whether each class has its own context."""
        return self.context.ndim == 3

    def to_bytes(self) -> bytes:
        """The content of a prompt file: the vectors, and the rest as its metadata."""
        from safetensors.torch import save

        tensors = {"context": self.context, "deeper": self.deeper, "vision": self.vision}
        facts = {
            "version": 1,
            "method": self.method,
            **asdict(self.layout),
            "class_names": list(self.class_names),
            "base": asdict(self.base) if self.base else None,
        }
        present = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items() if t is not None}
        return save(present, {METADATA: json.dumps(facts)})

    def describe(self) -> str:
        """One line for people."""
        where = "text and image tower" if self.vision is not None else "text"
        whose = ", of each class" if self.class_specific else ""
        return f"{self.layout.tokens} learned context vectors{whose} in {where} ({self.method}), from {self.label}"

    def tokens(self, tokenizer: Tokenizer, class_names: Sequence[str], *, duplicates: bool = False) -> PromptTokens:
        """Of the prompts of these classes. Raises ModelError where there cannot be any."""
        if self.class_specific:
            self._rows(class_names)
        return make_tokens(tokenizer, class_names, self.layout, duplicates=duplicates)

    @torch.no_grad()
    def encode(
        self, model: nn.Module, tokenizer: Tokenizer, class_names: Sequence[str], *, duplicates: bool = False
    ) -> Tensor:
        """The class-text matrix (D, C), float32, columns of unit length.

        Raises:
            ModelError: for names that a classifier cannot have, and for a class without a context of its own.
        """
        tokens = self.tokens(tokenizer, class_names, duplicates=duplicates)
        context = self.context[self._rows(class_names)] if self.class_specific else self.context
        device = next(model.parameters()).device
        deeper = None if self.deeper is None else self.deeper.to(device)
        return encode_learned(model, tokens, context.to(device), deeper).T.contiguous()

    def _rows(self, class_names: Sequence[str]) -> list[int]:
        """Which class-specific context each class has."""
        if self.class_names:
            unknown = [name for name in class_names if name not in self.class_names]
            if unknown:
                raise ModelError(
                    f"{self.label} has context vectors for its {len(self.class_names)} training classes alone, without "
                    f"{unknown[0]!r}: score the classes it was trained on, or train with class_specific=false."
                )
            return [self.class_names.index(name) for name in class_names]
        if len(class_names) != len(self.context):
            raise ModelError(
                f"{self.label} has context vectors for {len(self.context)} classes, and the data has "
                f"{len(class_names)}: score the classes it was trained on."
            )
        text = f"{self.label} does not name the classes of its {len(self.context)} context vectors: in the data's order"
        notice("guessed", text)
        return list(range(len(class_names)))

    def at(self, label: str, sha256: str) -> LearnedPrompts:
        """The same, read from a file."""
        return replace(self, label=label, sha256=sha256)


def prompts_of(facts: dict[str, Any], tensors: dict[str, Tensor]) -> LearnedPrompts:
    """What `LearnedPrompts.to_bytes` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    if facts["version"] != 1:
        raise ValueError("it is of a newer clipguard")
    layout = Layout(str(facts["words"]), int(facts["tokens"]), facts["position"])
    context, deeper, vision = (tensors.get(name) for name in ("context", "deeper", "vision"))
    if context is None or context.shape[-2] != layout.tokens:
        raise ValueError(f"it has no {layout.tokens} context vectors")
    base = PromptBase(**facts["base"]) if facts["base"] else None
    return LearnedPrompts(facts["method"], layout, context, deeper, vision, tuple(facts["class_names"]), base)
