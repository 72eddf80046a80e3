"""What is subtracted from pixels in [0,1], and what they are divided by, before a model sees them."""

from __future__ import annotations

import math
from typing import NamedTuple

from clipguard.core.errors import ModelError


class Normalization(NamedTuple):
    """(pixel - mean) / std, by colour."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALIZATIONS = {
    "clip": Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def parse_normalization(text: str) -> Normalization:
    """`clip`, `imagenet`, or mean and standard deviation as in `0.5,0.5,0.5/0.5,0.5,0.5`.

    Raises:
        ModelError: for anything else.
    """
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    good = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std, default=0) > 0
    if not good:
        raise ModelError(
            f"`normalization` {text!r} cannot be read: use {', '.join(NORMALIZATIONS)}, or mean and standard deviation"
            " as in 0.5,0.5,0.5/0.5,0.5,0.5."
        )
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
