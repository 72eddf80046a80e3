"""Class names and prompt templates -> one text embedding per class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.errors import ModelError

logger = logging.getLogger("clipguard")

Tokenizer = Callable[[list[str]], Tensor]
BATCH = 256  # prompts encoded at once


@torch.no_grad()
def encode_classes(
    model: nn.Module, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str], device: torch.device
) -> Tensor:
    """Class-text matrix (D, C), float32, columns of unit length, on `device`.

    CLIP's zero-shot convention (Radford et al. 2021, section 3.1.4): per class, the embeddings of all templates
    filled with its name are normalised, averaged over the templates and normalised again.

    Args:
        class_names: C names; each fills the `{}` of every template.
        templates: prompts such as "a photo of a {}."

    Raises:
        ModelError: when there are no names or templates, or a template has no `{}`.
    """
    _check_prompts(class_names, templates)
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    pieces = []
    for start in range(0, len(prompts), BATCH):
        tokens = tokenizer(prompts[start : start + BATCH])
        _warn_if_cut(tokenizer, tokens)
        features: Tensor = model.encode_text(tokens.to(device), normalize=True)  # type: ignore[operator]
        pieces.append(features.float())
    per_class = torch.cat(pieces).reshape(len(class_names), len(templates), -1).mean(dim=1)
    return F.normalize(per_class, dim=-1).T.contiguous()


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
