"""Text-guided attention: where in an image a tower sees what a text says; the losses that hold it."""

from __future__ import annotations

import math

from torch import Tensor, linalg
from torch.nn import functional as F

from clipguard.finetuning.methods.base import Batch

SMALLEST = 1e-6  # range of cosines; a map of less is as good as flat
ROUNDING = 1e-3  # an l2 distance of maps, whose values are at most 1
PIXELS = 224  # a side of the maps that the published weights were chosen for


def attention_map(patches: Tensor, text: Tensor) -> Tensor:
    """(B, T, N) in [0,1]: cosines of each image's patch tokens with its texts, from the lowest to the highest of a map.

    A = (c - min c) / (max c - min c) over the N patches. Two patches have the map (1, 0) or (0, 1) whatever their
    cosines. The code of Yu et al. 2024 normalises over patches instead of dimensions, which is no cosine, and divides
    by 0 where a map is flat; here a flat map is 0.

    Args:
        patches: (B, N, D), not normalised.
        text: (B, T, D) unit rows.
    """
    cosines = text @ F.normalize(patches, dim=-1).transpose(1, 2)
    lowest = cosines.amin(dim=2, keepdim=True)
    return (cosines - lowest) / (cosines.amax(dim=2, keepdim=True) - lowest).clamp(min=SMALLEST)


def map_distance(one: Tensor, other: Tensor) -> Tensor:
    """(B,) l2 distances of maps (B, T, N) drawn on 224 x 224 pixels, mean over the T.

    The authors compare maps that were interpolated to the image's size, and their weights are for such. Each patch as a
    square of equal pixels has the distance 224 / sqrt(N) of the map itself, whatever N: that is what this is. Between
    bilinear interpolation, which is theirs, and squares lies a factor of 0.67 for neighbours that have nothing to do
    with one another up to 1 for smooth differences. Maps that are equal but for rounding have the distance 0, and no
    gradient: that of an l2 norm has the same length however near its maps are, and would then follow the rounding.
    """
    distances = F.threshold(linalg.vector_norm(one - other, dim=2), ROUNDING, 0.0)
    return PIXELS / math.sqrt(one.shape[2]) * distances.mean(dim=1)


def true_text(rows: Tensor, batch: Batch) -> Tensor:
    """(B, T, D): each image's own class, of class texts (C, T, D)."""
    assert batch.labels is not None
    return rows[batch.labels]
