"""Attacks by name, and suites of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeVar

from clipguard.attacks.base import Attack
from clipguard.attacks.methods.apgd import APGD, APGDDLR, APGDTargeted
from clipguard.attacks.methods.fab import FABTargeted
from clipguard.attacks.methods.pgd import CW, FGSM, PGD
from clipguard.attacks.methods.square import Square
from clipguard.core.errors import AttackError
from clipguard.core.plugins import Registry


@dataclass(frozen=True)
class Suite:
    """Attacks that run one after the other on the images left standing, under one name."""

    attacks: tuple[str, ...]
    summary: str


SUITES: dict[str, Suite] = {
    "none": Suite((), "clean accuracy only"),
    "autoattack-fast": Suite(("apgd-ce", "apgd-t"), "apgd-ce + apgd-t: the protocol of FARE's tables, the default"),
    "autoattack": Suite(
        ("apgd-ce", "apgd-t", "fab-t", "square"), "apgd-ce + apgd-t + fab-t + square: AutoAttack's standard version"
    ),
}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*")  # no part is a number: `pgd-10` is pgd with 10 steps


AttackClass = TypeVar("AttackClass", bound=type[Attack])


def _add_plugin(_: str, kind: Any) -> None:
    """An attack of another package; the name of its entry point means nothing."""
    if not (isinstance(kind, type) and issubclass(kind, Attack)):
        raise AttackError(f"it must be a subclass of clipguard.attacks.base.Attack, not {kind!r}")
    register_attack(kind)


ATTACKS: Registry[type[Attack]] = Registry(
    {kind.name: kind for kind in (FGSM, PGD, CW, APGD, APGDDLR, APGDTargeted, FABTargeted, Square)},
    "clipguard.attacks",
    _add_plugin,
)


def register_attack(kind: AttackClass) -> AttackClass:
    """Add an attack class under its `name`; usable as a decorator.

    Args:
        kind: a frozen dataclass with `name` and `summary`, whose options all have defaults.

    Returns:
        The same class.

    Raises:
        AttackError: if another class or a suite has the name, or it cannot be written where an attack is named.
    """
    if ATTACKS.get(kind.name, kind) is not kind or kind.name in SUITES:
        raise AttackError(f"There is an attack {kind.name!r} already; give {kind.__name__} another name.")
    if not NAME.fullmatch(kind.name):
        raise AttackError(
            f"{kind.name!r} is no name of an attack: lower-case letters, digits and dashes, as in apgd-ce."
        )
    ATTACKS[kind.name] = kind
    return kind


def summaries() -> dict[str, str]:
    """A line for each attack and suite, by the name that a user writes (`pgd-K`): clean first, then attacks, suites."""
    attacks = {f"{name}-K" if kind.steps_in_name else name: kind.summary for name, kind in ATTACKS.items()}
    suites = {name: suite.summary for name, suite in SUITES.items()}
    return {"none": suites.pop("none"), **attacks, **suites}


def attack_class(full_name: str) -> type[Attack] | None:
    """The class of an attack that results call so (`pgd-10`); None if none is registered under that name."""
    stem, _, steps = full_name.rpartition("-")
    if steps.isdigit() and stem in ATTACKS and ATTACKS[stem].steps_in_name:
        return ATTACKS[stem]
    return ATTACKS.get(full_name)
