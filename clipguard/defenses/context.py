"""Class embeddings as a function of the context of the prompts: the embeddings of the words before the class name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import Prompts

BATCH = 64  # prompts, in one pass of the text tower


class ContextEncoder:
    """The text tower of an open_clip model, with the prompts `WORDS NAME.` and embeddings of its own for the words.

    Args:
        prompts: the text side of a classifier; its templates are not used.
        words: of the context, as in "a photo of a".
        user: the defence that needs it, for errors.

    Raises:
        DefenseError: for a text tower without token embeddings, or a tokenizer in whose tokens the words are not found.
    """

    def __init__(self, prompts: Prompts, words: str, user: str) -> None:
        self.model: Any = prompts.model
        self._embedding = _token_embedding(self.model, user)
        tokens, self._words = _tokens(prompts.tokenizer, words, tuple(prompts.class_names), user)
        self._tokens = tokens.to(self._embedding.weight.device)

    @property
    def context(self) -> Tensor:
        """(words, width), the embeddings that the words have."""
        return self._embedding.weight.detach()[self._tokens[0, self._words]].float()

    @torch.no_grad()
    def encode(self, context: Tensor) -> Tensor:
        """Class embeddings (C, D), float32 rows of unit length, with a context (words, width)."""
        return torch.cat([self._encoded(rows, context) for rows in torch.split(self._tokens, BATCH)])

    def pulled_back(self, gradients: Tensor) -> Tensor:
        """Gradients (N, C, D) with respect to the class embeddings -> (N, words, width), with respect to the context.

        N objectives share a forward pass through the text tower.
        """
        context = self.context.requires_grad_()
        total = torch.zeros(len(gradients), *context.shape, device=context.device)
        for rows, parts in zip(torch.split(self._tokens, BATCH), torch.split(gradients, BATCH, dim=1), strict=True):
            with torch.enable_grad():
                encoded = self._encoded(rows, context)
            for i, part in enumerate(parts):
                total[i] += torch.autograd.grad(encoded, context, part, retain_graph=i + 1 < len(parts))[0]
        return total

    def _encoded(self, tokens: Tensor, context: Tensor) -> Tensor:
        with self._replaced(context), torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(self.model.encode_text(tokens).float(), dim=1)

    @contextmanager
    def _replaced(self, context: Tensor) -> Iterator[None]:
        """Inside, the context's embeddings stand where the words' do."""
        first, end = self._words.start, self._words.stop

        def replace(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
            own = context.to(out.dtype).expand(len(out), -1, -1)
            return torch.cat([out[:, :first], own, out[:, end:]], dim=1)

        handle = self._embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def _token_embedding(model: Any, user: str) -> nn.Embedding:
    """Of open_clip's own text towers. Raises DefenseError for other ones."""
    tower = getattr(model, "text", model)
    embedding = getattr(tower, "token_embedding", None)
    if not isinstance(embedding, nn.Embedding):
        raise DefenseError(
            f"Defence {user!r} tunes the prompts of open_clip's own text towers, and this model's text tower is "
            f"{type(tower).__name__}, which has no token embeddings."
        )
    return embedding


@lru_cache(maxsize=4)
def _tokens(tokenizer: Any, words: str, names: tuple[str, ...], user: str) -> tuple[Tensor, slice]:
    """Token ids (C, L) of the prompts, and where the words are in them.

    They begin where the tokens of the words and those of no text part, and end where those of the words and those of
    the prompts do.
    """
    tokens: Tensor = tokenizer([f"{words} {name}." for name in names])
    alone, nothing = tokenizer([words])[0], tokenizer([""])[0]
    start, end = _common(alone, nothing[None]), _common(alone, tokens)
    if end <= start:
        raise DefenseError(f"Defence {user!r}: the words {words!r} are not found among the tokens of this tokenizer.")
    return tokens, slice(start, end)


def _common(tokens: Tensor, others: Tensor) -> int:
    """How many of the first tokens (L,) all others (N, L) have, too."""
    return int((tokens == others).all(dim=0).long().cumprod(dim=0).sum())
