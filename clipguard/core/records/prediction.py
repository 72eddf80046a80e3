"""What a model says of an image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """The class that an image is taken for, its softmax share in [0,1], and whether it is the image's label."""

    name: str
    confidence: float
    right: bool
