"""Attack objects: as recipes, and as they are written on the command line."""

from __future__ import annotations

from typing import Any

from clipguard.attacks.base import Attack
from clipguard.attacks.recipes import Recipe, check_options
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.core.spec import spell_call


def as_recipe(attack: str | Attack | Recipe) -> Recipe:
    """A recipe from a name or file, one attack, or itself.

    Raises:
        AttackError: for anything else, and an unknown name.
    """
    if isinstance(attack, Recipe):
        return attack
    if isinstance(attack, Attack):
        check_options(attack.full_name, type(attack)().options(), _changed_options(attack))
        return Recipe(attack.full_name, (attack,))
    return open_recipe(attack)


def spell_attack(attack: Attack) -> str:
    """An attack as it is written on the command line: `apgd-ce(iterations=50)`, without options at their defaults."""
    changed = _changed_options(attack)
    if attack.steps_in_name:
        changed.pop("iterations", None)
    return spell_call(attack.full_name, changed, type(attack)().options())


def _changed_options(attack: Attack) -> dict[str, Any]:
    """The options that are not at their defaults."""
    defaults = type(attack)().options()
    return {name: value for name, value in attack.options().items() if value != defaults[name]}
