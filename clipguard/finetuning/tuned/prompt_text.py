"""Prompts in training: context vectors, and the class texts that come of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from clipguard.core.errors import ModelError
from clipguard.core.notices import notice
from clipguard.finetuning.methods.prompts.design import PromptDesign
from clipguard.models.loading import LoadedModel
from clipguard.models.prompts.files import base_of
from clipguard.models.prompts.learned import LearnedPrompts
from clipguard.models.prompts.text import (
    Layout,
    encode_learned,
    fitting_tokens,
    make_tokens,
    text_tower,
    words_embedding,
)
from clipguard.models.prompts.vision import VisionPrompts, vision_size

INITIAL_STD = 0.02  # of context vectors, as in CoOp


class CoupledPrompts(VisionPrompts):
    """Prompts of both towers (MaPLe, Khattak et al., CVPR 2023, arXiv 2210.03117, section 3.2, as FAP's code has them).

    At the first block the image tower's are a linear layer of the text's; at each deeper one it is the other way round.

    Args:
        context: (M, text width), of the first block.
        blocks: that have prompts.
        width: of the image tower.
    """

    def __init__(self, context: nn.Parameter, blocks: int, width: int) -> None:
        super().__init__()
        tokens, text_width = context.shape
        self.context = context
        self.first = nn.Linear(text_width, width)
        self.free = nn.Parameter(INITIAL_STD * torch.randn(blocks - 1, tokens, width))
        self.to_text = nn.ModuleList(nn.Linear(width, text_width) for _ in range(blocks - 1))

    def vision(self) -> Tensor:
        """(blocks, M, width)."""
        with torch.autocast(self.context.device.type, enabled=False):
            return torch.cat([self.first(self.context).unsqueeze(0), self.free])

    def deeper(self) -> Tensor:
        """(blocks - 1, M, text width)."""
        rows = [layer(vectors) for layer, vectors in zip(self.to_text, self.free, strict=True)]
        return torch.stack(rows) if rows else self.context.new_zeros(0, *self.context.shape)


class PromptText(nn.Module):
    """Class texts with learned prompts. Calling it gives (C, D) unit rows, with gradients to what is trained.

    Where the design has prompts in the image tower they become a part of it. The text tower stays as it is, in eval
    mode, and is no part of the state.

    Args:
        loaded: the model; its image tower may be changed.
        class_names: of the training data.
        templates: of `original`, the texts without learned prompts.
        design: of the prompts.
        method: its name, for the record.

    Raises:
        ModelError: for towers that take no prompts, names without room for any, and texts that a map tunes.
    """

    original: Tensor

    def __init__(
        self,
        loaded: LoadedModel,
        class_names: Sequence[str],
        templates: Sequence[str],
        design: PromptDesign,
        method: str,
    ) -> None:
        super().__init__()
        if loaded.text_map is not None:
            raise ModelError(
                f"The text of {loaded.info.name} is tuned by a map beside its weights, which learned prompts do not go "
                "with: start from another model."
            )
        self.method, self.class_names = method, tuple(class_names)
        self._model = [loaded.model]  # in a list, so that it is no second module of the same weights
        tower = text_tower(loaded.model, loaded.info.name)
        original = loaded.text_features(class_names, templates).T.contiguous()
        self.register_buffer("original", original, persistent=False)
        self.base = base_of(loaded)
        start = words_embedding(loaded.model, loaded.tokenizer, design.words, loaded.info.name)
        self.layout = self._lay_out(loaded, design, len(start))
        self.tokens = make_tokens(loaded.tokenizer, class_names, self.layout)
        width = tower.token_embedding.weight.shape[1]
        context = start[: self.layout.tokens] if design.words else _drawn(design, self, width)
        if design.class_specific and context.ndim == 2:
            context = context.expand(len(class_names), -1, -1)
        self.context = nn.Parameter(context.to(loaded.device, copy=True).contiguous())
        self.coupled = self._couple(loaded, design) if design.vision else None

    def _lay_out(self, loaded: LoadedModel, design: PromptDesign, words: int) -> Layout:
        if design.words:
            return Layout(design.words, design.tokens or words, design.position)
        tokens = fitting_tokens(loaded.tokenizer, self.class_names, design.tokens)
        if tokens < design.tokens:
            text = f"{design.tokens} context vectors are more than the model's text has room for beside the class names"
            notice("truncated", f"{text}: {tokens} are learned")
        return Layout.free(tokens, design.position)

    def _couple(self, loaded: LoadedModel, design: PromptDesign) -> CoupledPrompts:
        visual = loaded.model.visual
        assert isinstance(visual, nn.Module)
        size = vision_size(visual, loaded.info.name)
        blocks = min(design.blocks, size.blocks, len(text_tower(loaded.model, "").transformer.resblocks))
        if blocks < design.blocks:
            notice("truncated", f"prompts in {design.blocks} blocks are more than both towers have: {blocks} have them")
        coupled = CoupledPrompts(self.context, blocks, size.width).to(loaded.device)
        coupled.attach(visual)
        return coupled

    def tuned_parameters(self) -> list[nn.Parameter]:
        """All that is trained, of both towers."""
        return list(self.parameters())

    def forward(self) -> Tensor:
        """(C, D) unit rows, float32."""
        return self.encode(self.context)

    def encode(self, context: Tensor) -> Tensor:
        """(C, D) unit rows with other context vectors of the first block."""
        deeper = None if self.coupled is None else self.coupled.deeper()
        return encode_learned(self._model[0], self.tokens, context, deeper)

    def ascending(self, step: float) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
        """The prompt as an opponent (APT's "perturbed"): a call takes an objective of the text, and gives its values.

        After each call the context moves by `step` along the gradient of the mean of the values, for the next one; the
        context that is trained stays where it is.
        """
        moved = self.context.detach().clone()

        def values_of(objective: Callable[[Tensor], Tensor]) -> Tensor:
            context = moved.clone().requires_grad_()
            values = objective(self.encode(context))
            (gradient,) = torch.autograd.grad(values.mean(), context, retain_graph=True)
            moved.add_(gradient, alpha=step)
            return values

        return values_of

    @torch.no_grad()
    def learned(self) -> LearnedPrompts:
        """What was learned, for a file."""
        specific = self.class_names if self.context.ndim == 3 else ()
        deeper, vision = (None, None) if self.coupled is None else (self.coupled.deeper(), self.coupled.vision())
        return LearnedPrompts(self.method, self.layout, self.context, deeper, vision, specific, self.base)


def _drawn(design: PromptDesign, text: PromptText, width: int) -> Tensor:
    """Random context vectors, drawn on the CPU, so that they are the same for every device."""
    shape = (text.layout.tokens, width)
    return INITIAL_STD * torch.randn(*((len(text.class_names), *shape) if design.class_specific else shape))
