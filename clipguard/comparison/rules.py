"""What counts as a regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from clipguard.core.settings import check_settings, setting

Metric = Literal["clean", "robust", "average"]
FailOn = Literal["regression", "any-drop", "inconclusive"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Rules:
    """A regression is a drop of more than `max_drop` points, tested at `alpha` over all cells of `metrics`.

    Raises ClipguardError for values that make no test.
    """

    max_drop: float = setting(1.0, "Points of accuracy that a cell may lose.", low=0, high=100, below=True)
    alpha: float = setting(
        0.05, "Chance of a false alarm in any cell, at most.", low=0, high=0.5, above=True, below=True
    )
    metrics: tuple[Metric, ...] = setting(
        METRICS,
        "Cells that count: clean, robust, average (over data sets), comma-separated.",
        flag="--metric",
        many="comma",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_settings(self)
