"""What a run trains: the image tower and the class texts of one model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipguard.finetuning.tuned.class_text import ClassText
from clipguard.finetuning.tuned.image_tower import ImageTower
from clipguard.finetuning.tuned.prompt_text import PromptText


class TunedModel(nn.Module):
    """The image tower in training and, where there are classes, their text.

    Called with pixels (B, 3, H, W) it gives embeddings (B, D), with `patches` also patch tokens (B, N, D); with tokens
    (B, L) those of other texts; called without either it gives class texts (C, D), with `prompts` those of each prompt
    (C, T, D): one module for all, so that accelerate wraps, and a checkpoint holds, all that is trained.
    """

    def __init__(self, image: ImageTower, text: ClassText | PromptText | None) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(
        self,
        pixels: Tensor | None = None,
        tokens: Tensor | None = None,
        *,
        patches: bool = False,
        prompts: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if pixels is not None:
            embeddings: Tensor | tuple[Tensor, Tensor]
            embeddings = self.image.with_patches(pixels) if patches else self.image(pixels)
            return embeddings
        if self.text is None:
            return self.original_text()
        with torch.autocast(self.image.mean.device.type, enabled=False):  # a rounded text moves every logit
            if tokens is not None:
                assert isinstance(self.text, ClassText)
                return self.text.embed(tokens)
            of_each = self.text.class_prompts if prompts and isinstance(self.text, ClassText) else self.text
            text: Tensor = of_each()
        return text

    def original_text(self) -> Tensor:
        """(C, D) class texts as the model came; (0, 0) without classes."""
        return torch.empty(0, 0) if self.text is None else self.text.original

    def image_parameters(self) -> list[nn.Parameter]:
        """What is trained of the image tower's own weights."""
        prompts = {id(p) for p in self.prompt_parameters()}
        return [p for p in self.image.parameters() if p.requires_grad and id(p) not in prompts]

    def text_parameters(self) -> list[nn.Parameter]:
        """What is trained of the text."""
        return self.text.tuned_parameters() if isinstance(self.text, ClassText) else []

    def prompt_parameters(self) -> list[nn.Parameter]:
        """What is trained of learned prompts, in both towers."""
        return self.text.tuned_parameters() if isinstance(self.text, PromptText) else []
