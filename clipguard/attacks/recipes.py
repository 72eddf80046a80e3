"""Recipes from text: `pgd-10`, `apgd-ce(iterations=50,restarts=2)`, `autoattack`, `apgd-ce+square`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from clipguard.attacks.base import Attack
from clipguard.attacks.registry import ATTACKS, SUITES
from clipguard.core.errors import AttackError, did_you_mean
from clipguard.core.spec import Value, parse_call

PLUS_BETWEEN_ATTACKS = re.compile(r"\+(?![^(]*\))")  # a plus inside parentheses is of a number
LARGEST_STEP = 2  # of eps: it reaches from one side of the ball to the other


@dataclass(frozen=True)
class Recipe:
    """An attack as the user named it.

    Attributes:
        name: as it was written; results carry it.
        stages: run in order, each on the images that the ones before left standing.
        eot: forward passes averaged per evaluation, for randomised models.
    """

    name: str
    stages: tuple[Attack, ...] = ()
    eot: int = 1

    def parameters(self) -> dict[str, Any]:
        """Every parameter of every stage, as plain JSON types."""
        return {"name": self.name, "eot": self.eot, "stages": [stage.parameters() for stage in self.stages]}

    def check_perturbs(self) -> None:
        """Raises AttackError for a recipe without stages, where an attack is needed."""
        if not self.stages:
            raise AttackError(f"`attack` {self.name} perturbs nothing; name an attack, as in `attack=pgd-10`.")


def parse_recipe(text: str) -> Recipe:
    """A recipe from `NAME`, `NAME-K` (pgd, cw) or `NAME(option=value,...)`, or several of these joined by `+`.

    Raises:
        AttackError: for an unknown name or option, or a value that makes no sense.
    """
    parts = PLUS_BETWEEN_ATTACKS.split(text)
    if len(parts) == 1:
        return _parse_one(text)
    chain = [parse_recipe(part) for part in parts]
    if any(recipe.eot != 1 or not recipe.stages for recipe in chain):
        raise AttackError(f"Attack {text!r} joins attacks, which cannot be none or have eot; use a recipe file.")
    return Recipe(text.strip(), tuple(stage for recipe in chain for stage in recipe.stages))


def _parse_one(text: str) -> Recipe:
    """A recipe of one attack or suite."""
    try:
        name, options = parse_call(text)
    except ValueError as error:
        raise AttackError(f"Attack {text!r}: {error}, as in pgd-10 or apgd-ce(iterations=50).") from None
    eot = _whole_number(text, "eot", options.pop("eot", 1))
    name, options = _steps_to_option(text, name, options)
    if name in SUITES:
        if options:
            raise AttackError(f"Suite {name!r} has no option {next(iter(options))!r}; give options to a single attack.")
        return Recipe(text.strip(), tuple(ATTACKS[attack]() for attack in SUITES[name].attacks), eot)
    if name not in ATTACKS:
        raise _unknown(text)
    check_options(text, ATTACKS[name]().options(), options)
    return Recipe(text.strip(), (ATTACKS[name](**options),), eot)


def _steps_to_option(text: str, name: str, options: dict[str, Value]) -> tuple[str, dict[str, Value]]:
    """`pgd-10` is pgd with 10 iterations. Raises AttackError for steps that are missing, too many or of no use."""
    stem, _, steps = name.rpartition("-")
    if not steps.isdigit():
        if _has_steps(name) and "iterations" not in options:
            raise AttackError(f"Attack {text!r} needs a step count: {name}-10, for example.")
        return name, options
    if not _has_steps(stem):
        raise _unknown(text)
    if "iterations" in options:
        raise AttackError(f"Attack {text!r} gives its step count twice; write {stem}-10, for example.")
    return stem, options | {"iterations": int(steps)}


def _has_steps(name: str) -> bool:
    return name in ATTACKS and ATTACKS[name].steps_in_name


def _unknown(text: str) -> AttackError:
    names = [*(f"{name}-10" if _has_steps(name) else name for name in ATTACKS), *SUITES]
    hint = did_you_mean(text, names)
    return AttackError(f"Unknown attack {text!r}.{hint} `clipguard list attacks` shows all.")


def check_options(text: str, defaults: dict[str, Any], options: dict[str, Value]) -> None:
    """Raises AttackError for an option that the attack does not have, or a value that makes no sense."""
    for key, value in options.items():
        if key not in defaults:
            raise AttackError(f"Attack {text!r} has no option {key!r}; it has {', '.join(defaults)}.")
        if isinstance(defaults[key], bool):
            if not isinstance(value, bool):
                raise AttackError(f"Attack {text!r}: {key} must be true or false.")
        elif key == "step_size":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST_STEP:
                raise AttackError(f"Attack {text!r}: step_size is a fraction of eps, above 0 and at most 2.")
        else:
            _whole_number(text, key, value)


def _whole_number(text: str, key: str, value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AttackError(f"Attack {text!r}: {key} must be a whole number of at least 1.")
    return value
