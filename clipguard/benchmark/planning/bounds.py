"""The fewest and the most passes that an image can take, from what its attacks declare."""

from __future__ import annotations

from collections import Counter

from clipguard.attacks.engine.engine import CONFIRMATION
from clipguard.attacks.engine.options import EpsMode
from clipguard.attacks.recipes import Recipe

CLEAN, VERIFICATION = "clean", "verification"  # what the engine charges beside attacks
Passes = Counter[str]  # forward passes of an image by attack


def least_passes(recipe: Recipe, unknown: int, mode: EpsMode, *, right: bool) -> int:
    """Of an image that falls to the first point that is tried at every eps it has to face.

    Args:
        recipe: what it faces.
        unknown: eps above 0 whose outcome is not known.
        mode: which of these it faces.
        right: whether it is known to be right when clean; of others nothing is certain but the clean pass.
    """
    faced = 0 if not (right and recipe.stages) else min(unknown, 1) if mode == "ascending" else unknown
    return recipe.eot * (1 + 2 * faced)  # the point, and its verification


def most_passes(recipe: Recipe, unknown: int, mode: EpsMode, n_classes: int, *, right: bool | None) -> Passes:
    """Of an image that no attack breaks before its last point; arguments as above.

    Each run may end with a claim that is verified. Claims that the search makes in less than float32 and that float32
    refuses come on top: they are few.

    Args:
        n_classes: of the data set.
        right: None where it is not known: then it may be.
    """
    passes: Passes = Counter({CLEAN: recipe.eot})
    if right is False or not recipe.stages:
        return passes
    here = _all_runs(recipe, n_classes)
    confirmation: Passes = Counter({CONFIRMATION.full_name: CONFIRMATION.most_passes(), VERIFICATION: 1})
    if mode == "nested" and confirmation.total() > here.total():
        here = confirmation
    for name, n in here.items():
        passes[name] += recipe.eot * unknown * n
    return passes


def _all_runs(recipe: Recipe, n_classes: int) -> Passes:
    """Every run of every attack, at one eps."""
    passes: Passes = Counter()
    for stage in recipe.stages:
        runs = stage.runs(n_classes)
        passes[stage.full_name] += runs * stage.most_passes()
        passes[VERIFICATION] += runs
    return passes
