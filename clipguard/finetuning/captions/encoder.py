"""Captions as a model sees them: tokens, and embeddings by the text tower as it came."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from clipguard.core.notices import notice
from clipguard.data.captions import Captions
from clipguard.finetuning.methods.captions.edits import words_of
from clipguard.models.loading import LoadedModel
from clipguard.models.text.encoding import BATCH, find_cut

LOOKED_AT = 2000  # captions, to find out whether they fit into the context


class CaptionEncoder:
    """The tokenizer and the original text tower of a model.

    Args:
        loaded: the model; its text tower must stay as it is.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer, self._model, self._map = loaded.tokenizer, loaded.model, loaded.text_map
        self.device = loaded.device

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(B, L) token ids, in memory."""
        return self._tokenizer(list(captions))

    @torch.no_grad()
    def original(self, tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, D) embeddings of captions by their tokens, float32; not normalised, unless the model's text is mapped.

        Raises:
            ModelError: where the text is a table of class names.
        """
        if self._map is None:
            return embed_texts(self._model, tokens)
        rows = embed_texts(self._model, tokens, normalize=True)
        mapped: Tensor = self._map(rows.unsqueeze(1), captions)
        return mapped.squeeze(1)

    def say_cut(self, captions: Captions) -> None:
        """A notice if captions are longer than the model's context."""
        texts = [texts[0] for texts in captions[:LOOKED_AT]]
        tokens = self.tokens(texts)
        if cut := find_cut(self._tokenizer, texts, tokens):
            notice(
                "truncated",
                f"{len(cut)} of the first {len(texts)} captions are longer than the model's context of "
                f"{tokens.shape[1]} tokens, and are cut there: {texts[cut[0]]!r}",
            )


def embed_texts(model: nn.Module, tokens: Tensor, *, normalize: bool = False) -> Tensor:
    """(B, D) embeddings, float32, by the text tower of an open_clip model, in passes of a limited size."""
    encode: Callable[..., Tensor] = model.encode_text  # type: ignore[assignment]
    pieces = (tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH))
    return torch.cat([encode(piece, normalize=normalize).float() for piece in pieces])


def token_ids(tokens: Tensor) -> Tensor:
    """(B,) int64, equal where rows of tokens (B, L) are, in any process."""
    digests = (hashlib.sha256(row.tobytes()).digest() for row in tokens.cpu().numpy())
    return torch.tensor([int.from_bytes(digest[:8], "big") >> 1 for digest in digests])


def vocabulary(captions: Captions) -> frozenset[str]:
    """Words that an edit must not make: the whole words of CLIP's tokenizer, and those of the captions."""
    from open_clip.tokenizer import SimpleTokenizer

    known = (token.removesuffix("</w>") for token in SimpleTokenizer().encoder if token.endswith("</w>"))
    own = {word for texts in captions for text in texts for word in words_of(text)}
    return frozenset({word for word in known if word.isalpha()} | own)
