"""Patch tokens of a vision transformer beside its embedding, from one pass and in the space of its embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from clipguard.core.errors import FinetuneError


def give_patches(visual: nn.Module, method: str, model: str) -> None:
    """Have a tower give its patch tokens whenever its `output_tokens` is set; nothing else about it changes.

    They are what the class token is made to be: through the last normalisation and the projection (as in the patched
    CLIP of TGA-ZSR's code).

    Args:
        visual: an image tower.
        method: that asks for them, and
        model: whose tower it is, for the message.

    Raises:
        FinetuneError: for another than a plain open_clip ViT of at least two patches.
    """
    reason = _why_not(visual)
    if reason:
        raise FinetuneError(
            f"{method} compares attention over image patches, and the tower of {model} {reason}: choose an open_clip "
            "ViT such as ViT-B-32, or another method."
        )
    # As a hook, the projection is inside the tower's pass: with `fsdp`, its weights are there in full.
    visual.register_forward_hook(_project)


@contextmanager
def giving_patches(visual: nn.Module) -> Iterator[None]:
    """Meanwhile a tower gives its patch tokens, too."""
    assert isinstance(visual, VisionTransformer)
    visual.output_tokens = True
    try:
        yield
    finally:
        visual.output_tokens = False


def _why_not(visual: nn.Module) -> str | None:
    if not isinstance(visual, VisionTransformer):
        kind = type(getattr(visual, "trunk", visual)).__name__
        return f"is a {kind}" + (" of timm" if hasattr(visual, "trunk") else "")
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        return "pools its patches by attention"
    if not isinstance(visual.patch_dropout, nn.Identity):
        return "drops patches at random in training"
    if visual.grid_size[0] * visual.grid_size[1] < 2:
        return "has one patch"
    return None


def _project(visual: nn.Module, _: Any, out: Any) -> Any:
    return project(visual, out) if visual.output_tokens else None


def project(visual: nn.Module, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(B, D) embeddings and (B, N, D) patch tokens, of embeddings and the tower's own tokens (B, N, width)."""
    assert isinstance(visual, VisionTransformer)
    embeddings, tokens = out
    if visual.final_ln_after_pool:
        tokens = visual.ln_post(tokens)
    return embeddings, tokens @ visual.proj
