"""How the engine runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from clipguard.core.checking import check_type
from clipguard.core.errors import AttackError

Fill = Literal["least", "multiple", "full", "alone"]  # up to how many rows a pass is filled: see batching.py
EpsMode = Literal["ascending", "independent", "nested"]
EPS_MODES: tuple[EpsMode, ...] = get_args(EpsMode)
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class EngineOptions:
    """How to run. Only `seed` and nested `eps_mode` are meant to change outcomes.

    Attributes:
        batch_size: images a pass; None for what fits into memory.
        seed: of all random numbers.
        eps_mode: which eps an image faces, and in which order: see `schedule`.
        precision: of the search for adversarial images. It rounds differently, so an image at the edge may go the
            other way; what is found is verified in float32 in any case.
        compile: whether the search runs a compiled model, which rounds differently, too.
        keep_images: whether outcomes carry the strongest image found.
        stop_cycles: whether a run that comes back to a point ends (see cycles.py). Only for models that give a row the
            same bits in every pass; outcomes are the same, with fewer passes.
        fill: how passes are filled up with black images, so that an outcome does not depend on the batch.
        small_rows: passes of fewer rows than the model's `least_rows` are filled up to a multiple of these, where the
            fill is "least" or "multiple"; None for `least_rows` itself.
        confidence: an image counts as broken only where z_y - max z_k is below minus this in its verification.
            Infinity: every attack runs to its end, and what it found strongest is in the outcome's image.

    Raises:
        AttackError: for a value of the wrong type or out of range.
    """

    batch_size: int | None = 64
    seed: int = 0
    eps_mode: EpsMode = "ascending"
    precision: str = "float32"
    compile: bool = False
    keep_images: bool = False
    fill: Fill = "least"
    small_rows: int | None = None
    stop_cycles: bool = False
    confidence: float = 0

    def first_margin(self, clean_margin: float) -> float:
        """The smallest margin before an attack: the clean image's, or none where its judge has another measure."""
        return clean_margin if self.confidence == 0 else math.inf

    def __post_init__(self) -> None:
        check_type("`batch_size`", self.batch_size, int | None, AttackError)
        check_type("`seed`", self.seed, int, AttackError)
        if self.batch_size is not None and self.batch_size < 1:
            raise AttackError(f"`batch_size` must be at least 1, not {self.batch_size}.")
        for name, value, known in (("eps_mode", self.eps_mode, EPS_MODES), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise AttackError(f"Unknown `{name}` {value!r}; use one of {', '.join(known)}.")
