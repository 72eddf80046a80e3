"""Class names and prompt templates -> one text embedding per class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.errors import ModelError
from clipguard.models.text_map import TextMap

logger = logging.getLogger("clipguard")

Tokenizer = Callable[[list[str]], Tensor]
BATCH = 256  # prompts encoded at once


@torch.no_grad()
def encode_classes(
    model: nn.Module,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
    text_map: TextMap | None = None,
) -> Tensor:
    """Class-text matrix (D, C), float32, columns of unit length, on `device`.

    Args:
        class_names: C names; each fills the `{}` of every template.
        templates: prompts such as "a photo of a {}."
        text_map: what tuned text does to the embedding of each prompt, for models that keep it beside their weights.

    Raises:
        ModelError: when there are no names or templates, a template has no `{}`, or the map does not know a name.
    """
    prompts = encode_prompts(model, tokenize(tokenizer, class_names, templates).to(device), len(class_names))
    if text_map is not None:
        prompts = text_map(prompts, class_names)
    return class_rows(prompts).T.contiguous()


def tokenize(tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids (C * T, L) of every template filled with every name, name by name.

    Raises:
        ModelError: when there are no names or templates, or a template has no `{}`.
    """
    _check_prompts(class_names, templates)
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    tokens = torch.cat([tokenizer(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)])
    _warn_if_cut(tokenizer, tokens)
    return tokens


def encode_prompts(model: nn.Module, tokens: Tensor, classes: int) -> Tensor:
    """Embeddings (C, T, D) of prompts, float32 unit rows, from their tokens (C * T, L)."""
    encode: Callable[..., Tensor] = model.encode_text  # type: ignore[assignment]
    pieces = (tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH))
    features = torch.cat([encode(piece, normalize=True).float() for piece in pieces])
    return features.reshape(classes, -1, features.shape[1])


def class_rows(prompts: Tensor) -> Tensor:
    """Class embeddings (C, D), unit rows, from those of their prompts (C, T, D), unit rows.

    CLIP's zero-shot convention (Radford et al. 2021, section 3.1.4): the normalised embeddings of a class are averaged
    over the templates and normalised again.
    """
    return F.normalize(prompts.mean(dim=1), dim=-1)


def _check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    if not class_names or not templates:
        raise ModelError("A zero-shot classifier needs at least one class name and one template.")
    bad = next((template for template in templates if "{}" not in template), None)
    if bad is not None:
        raise ModelError(f"The template {bad!r} has no {{}} for the class name: write it as in 'a photo of a {{}}.'")


def _warn_if_cut(tokenizer: Tokenizer, tokens: Tensor) -> None:
    """Say when prompts may have lost their end. Only CLIP's own tokenizer is known to pad with 0."""
    import open_clip

    full = int((tokens[:, -1] != 0).sum()) if isinstance(tokenizer, open_clip.SimpleTokenizer) else 0
    if full:
        length = tokens.shape[1]
        logger.warning("%d prompts fill the model's context of %d tokens: longer ones are cut there", full, length)
