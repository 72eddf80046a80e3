"""The contrastive loss of CLIP on a batch of pairs, image by image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.finetuning.methods.base import Batch

Duplicates = Literal["positive", "negative"]


def pair_targets(ids: Tensor, duplicates: Duplicates) -> Tensor:
    """(B, B) which caption belongs to which image, rows and columns that sum to 1.

    Args:
        ids: (B,) equal where captions are the same.
        duplicates: whether a caption that another image has, too, is as right for it ("positive"; the targets of UniCL,
            Yang et al. 2022, arXiv 2204.03610), or wrong as of any other image ("negative", as in CLIP).
    """
    if duplicates == "negative":
        return torch.eye(len(ids), device=ids.device)
    same = (ids[:, None] == ids).float()
    return same / same.sum(dim=1, keepdim=True)


def caption_logits(images: Tensor, captions: Tensor, scale: float) -> Tensor:
    """(B, B) scaled cosines of images (rows) and captions (columns)."""
    return scale * F.normalize(images, dim=-1) @ F.normalize(captions, dim=-1).T


def info_nce(images: Tensor, batch: Batch, duplicates: Duplicates) -> Tensor:
    """(B,) symmetrical InfoNCE of images (B, D) with the captions of the batch (Radford et al. 2021, figure 3).

    Half the cross-entropy of an image over captions, and half that of its caption over images.
    """
    assert batch.captions is not None
    assert batch.caption_ids is not None
    logits = caption_logits(images, batch.captions, batch.logit_scale)
    targets = pair_targets(batch.caption_ids, duplicates)
    to_captions = F.cross_entropy(logits, targets, reduction="none")
    to_images = F.cross_entropy(logits.T, targets, reduction="none")
    return (to_captions + to_images) / 2
