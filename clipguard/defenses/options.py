"""Ranges of the options of defences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from clipguard.core.errors import DefenseError

if TYPE_CHECKING:
    from clipguard.defenses.base import Defense


def at_least(defense: Defense, **least: float) -> None:
    """Raises DefenseError for an option of a defence that is below its least value, or no number."""
    for name, bound in least.items():
        value = getattr(defense, name)
        if not bound <= value < math.inf:
            raise DefenseError(f"Defence {defense.name!r}: {name} must be at least {bound}, not {value}.")


def below(defense: Defense, **bounds: float) -> None:
    """The same for options that must lie below a bound."""
    for name, bound in bounds.items():
        value = getattr(defense, name)
        if not value < bound:
            raise DefenseError(f"Defence {defense.name!r}: {name} must be below {bound}, not {value}.")


def above(defense: Defense, **bounds: float) -> None:
    """The same for options that must lie above a bound."""
    for name, bound in bounds.items():
        value = getattr(defense, name)
        if not bound < value < math.inf:
            raise DefenseError(f"Defence {defense.name!r}: {name} must be above {bound}, not {value}.")


def between(defense: Defense, **ranges: tuple[float, float]) -> None:
    """The same for options that have a least and a largest value."""
    for name, (least, largest) in ranges.items():
        value = getattr(defense, name)
        if not least <= value <= largest:
            raise DefenseError(f"Defence {defense.name!r}: {name} must be from {least} to {largest}, not {value}.")
