"""Prompts with context vectors in the place of words: which tokens they have, and how a text tower encodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.core.errors import ModelError
from clipguard.models.text.encoding import BATCH, Tokenizer, tokenize

Position = Literal["end", "middle", "front"]
PLACEHOLDER = "X"  # a word of one token, whose embedding is replaced


@dataclass(frozen=True)
class Layout:
    """The form of a prompt, `WORDS NAME.`; the full stop is part of it.

    Attributes:
        words: before the class name. The first tokens of them are replaced by context vectors.
        tokens: how many are.
        position: of the class name among the context vectors: at their end, in the middle or in front of them, as in
            CoOp (Zhou et al. 2022, arXiv 2109.01134, section 3.2). Other than "end" only where all words are replaced.
    """

    words: str
    tokens: int
    position: Position = "end"

    @classmethod
    def free(cls, tokens: int, position: Position = "end") -> Layout:
        """Nothing but context vectors beside the class name: `X X ... NAME.`"""
        return cls(" ".join([PLACEHOLDER] * tokens), tokens, position)


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of prompts (C, L), and where in them context vectors stand (C, M)."""

    ids: Tensor
    slots: Tensor


def text_tower(model: nn.Module, name: str) -> Any:
    """The text tower of an open_clip model, whose token embeddings can be replaced; `name`: the model, for messages.

    Raises:
        ModelError: for a text tower of another library, which has none that can be reached.
    """
    tower: Any = getattr(model, "text", model)
    transformer = getattr(tower, "transformer", None)
    whole = isinstance(getattr(tower, "token_embedding", None), nn.Embedding) and hasattr(transformer, "resblocks")
    if not whole or not getattr(transformer, "batch_first", False):
        raise ModelError(
            f"Learned prompts take the place of token embeddings in open_clip's own text towers; that of {name} is "
            f"{type(tower).__name__}: choose another model."
        )
    return tower


def words_embedding(model: nn.Module, tokenizer: Tokenizer, words: str, name: str) -> Tensor:
    """(M, width), the embeddings of the M tokens of some words, float32."""
    tokens, nothing = tokenizer([words])[0], tokenizer([""])
    first = _common(tokens, nothing)
    n = _length(tokens, nothing) - _length(nothing[0], nothing)
    embedding: Tensor = text_tower(model, name).token_embedding.weight
    return embedding.detach()[tokens[first : first + n].to(embedding.device)].float()


def fitting_tokens(tokenizer: Tokenizer, class_names: Sequence[str], wanted: int) -> int:
    """How many context vectors of those wanted there is room for beside every name.

    Raises:
        ModelError: where there is room for none.
    """
    rows, nothing = tokenizer([f"{name}." for name in class_names]), tokenizer([""])
    lengths = [_length(row, nothing) for row in rows]
    longest = lengths.index(max(lengths))
    room = rows.shape[1] - lengths[longest]
    if room < 1:
        raise ModelError(
            f"The class {class_names[longest]!r} fills the model's context of {rows.shape[1]} tokens, without room for "
            "learned prompts: shorten the name."
        )
    return min(wanted, room)


def make_tokens(
    tokenizer: Tokenizer, class_names: Sequence[str], layout: Layout, *, duplicates: bool = False
) -> PromptTokens:
    """The tokens of `WORDS NAME.` for every class name, with the name where the layout has it.

    Raises:
        ModelError: as `tokenize`, and where the words are not found among the tokens.
    """
    words = [layout.words] if layout.words else []
    ids = tokenize(tokenizer, class_names, [" ".join([*words, "{}."])], duplicates=duplicates)
    alone, nothing = tokenizer([layout.words])[0], tokenizer([""])
    first, end = _common(alone, nothing), _common(alone, ids)
    if end - first < layout.tokens:
        raise ModelError(
            f"The first {layout.tokens} tokens of {layout.words!r} are not found among those of this model's prompts: "
            "take fewer, or other words."
        )
    if layout.position == "end":
        slots = torch.arange(first, first + layout.tokens).expand(len(ids), -1)
        return PromptTokens(ids, slots.contiguous())
    empty = _length(nothing[0], nothing)
    lengths = [_length(row, nothing) - empty for row in tokenizer(list(class_names))]
    rows = [_moved(row, first, layout, length) for row, length in zip(ids, lengths, strict=True)]
    return PromptTokens(torch.stack([row for row, _ in rows]), torch.stack([slots for _, slots in rows]))


def _moved(row: Tensor, first: int, layout: Layout, name: int) -> tuple[Tensor, Tensor]:
    """Tokens (L,) with the name's tokens among the context, and where the context is (M,).

    A prompt that was cut keeps its last token, from which text towers read.
    """
    before = 0 if layout.position == "front" else layout.tokens // 2
    end = first + layout.tokens
    name = min(name, len(row) - end - 1)
    order = [row[:first], row[first : first + before], row[end : end + name], row[first + before : end]]
    after = torch.arange(first + before + name, end + name)
    return torch.cat([*order, row[end + name :]]), torch.cat([torch.arange(first, first + before), after])


def encode_learned(
    model: nn.Module, tokens: PromptTokens, context: Tensor, deeper: Tensor | None = None, name: str = "the model"
) -> Tensor:
    """Class embeddings (C, D), float32 rows of unit length, differentiable in the context.

    Args:
        model: an open_clip model.
        tokens: of C prompts with M context vectors.
        context: (M, width), or (C, M, width) of each class.
        deeper: (N, M, width), what stands there at the entrance of the second to the (N+1)th block in place of what the
            block before made of it (Khattak et al., MaPLe, CVPR 2023, section 3.2); None: nothing.
        name: the model, for messages.
    """
    tower = text_tower(model, name)
    device = tower.token_embedding.weight.device
    rows = []
    for start in range(0, len(tokens.ids), BATCH):
        piece = slice(start, start + BATCH)
        own = context[piece] if context.ndim == 3 else context
        with _replaced(tower, tokens.slots[piece].to(device), own, deeper), torch.autocast(device.type, enabled=False):
            rows.append(model.encode_text(tokens.ids[piece].to(device)).float())  # type: ignore[operator]
    return F.normalize(torch.cat(rows), dim=-1)


@contextmanager
def _replaced(tower: Any, slots: Tensor, context: Tensor, deeper: Tensor | None) -> Iterator[None]:
    """Inside, these vectors stand at the slots (B, M): after the token embedding, and before deeper blocks."""
    with ExitStack() as hooks:
        embedding = tower.token_embedding
        hooks.callback(embedding.register_forward_hook(lambda _m, _in, out: _put(out, slots, context)).remove)
        for block, vectors in zip(tower.transformer.resblocks[1:], [] if deeper is None else deeper, strict=False):
            hooks.callback(block.register_forward_pre_hook(partial(_put_before, slots, vectors)).remove)
        yield


def _put_before(slots: Tensor, vectors: Tensor, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return _put(inputs[0], slots, vectors), *inputs[1:]


def _put(x: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """(B, L, width) with these vectors (M, width) or (B, M, width) at the slots (B, M)."""
    width = x.shape[-1]
    own = vectors.to(x.dtype).expand(len(x), -1, -1)
    return x.scatter(1, slots.unsqueeze(-1).expand(-1, -1, width), own)


def _common(tokens: Tensor, others: Tensor) -> int:
    """How many of the first tokens (L,) all others (N, L) have, too."""
    return int((tokens == others).all(dim=0).long().cumprod(dim=0).sum())


def _length(tokens: Tensor, nothing: Tensor) -> int:
    """How many tokens (L,) there are before the padding, which is what those of no text (1, L) end with.

    Raises:
        ModelError: where all texts end with a token of their own, which is no padding.
    """
    if nothing[0, -1] != nothing[0, -2]:
        raise ModelError(
            "Learned prompts find the end of a text by its padding, and this model's texts have a token behind that, as"
            " Delta-CLIP's: choose another model."
        )
    content = (tokens != nothing[0, -1]).nonzero()
    return int(content[-1]) + 1 if len(content) else 0
