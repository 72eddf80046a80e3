"""What a plan is asked beside the run that is planned."""

from __future__ import annotations

from dataclasses import dataclass

from clipguard.core.settings import setting


@dataclass(frozen=True)
class Question:
    """Settings of a plan."""

    price: float | None = setting(
        None, "Of one worker an hour, in any currency: a plan then says what the run would cost.", low=0
    )
    pilot: int = setting(
        16, "Images of each data set that a plan attacks for its estimate; 0: bounds without an estimate.", low=0
    )
