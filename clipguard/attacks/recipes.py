"""Attacks by name: `pgd-10`, `apgd-ce(iterations=50,restarts=2)`, `autoattack`, `apgd-ce+square`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from clipguard.attacks.base import Attack
from clipguard.attacks.methods.apgd import APGD, APGDDLR, APGDTargeted
from clipguard.attacks.methods.fab import FABTargeted
from clipguard.attacks.methods.pgd import CW, FGSM, PGD
from clipguard.attacks.methods.square import Square
from clipguard.core.errors import AttackError, did_you_mean
from clipguard.core.spec import Value, parse_call

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "cw": CW,
    "apgd-ce": APGD,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDTargeted,
    "fab-t": FABTargeted,
    "square": Square,
}
SUITES: dict[str, tuple[str, ...]] = {
    "none": (),
    "autoattack-fast": ("apgd-ce", "apgd-t"),
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
}
DESCRIPTIONS = {
    "none": "clean accuracy only",
    "fgsm": "one signed gradient step (Goodfellow et al. 2015)",
    "pgd-K": "K projected gradient steps on cross-entropy, random start (Madry et al. 2018)",
    "cw-K": "K projected gradient steps on the margin loss (Carlini & Wagner 2017)",
    "apgd-ce": "Auto-PGD on cross-entropy, 100 iterations (Croce & Hein 2020)",
    "apgd-dlr": "Auto-PGD on the difference of logits ratio",
    "apgd-t": "Auto-PGD on the targeted DLR, 9 targets",
    "fab-t": "targeted fast adaptive boundary attack, 9 targets (Croce & Hein 2020)",
    "square": "black-box random search, 5000 queries (Andriushchenko et al. 2020)",
    "autoattack-fast": "apgd-ce + apgd-t: the protocol of FARE's tables, the default",
    "autoattack": "apgd-ce + apgd-t + fab-t + square: AutoAttack's standard version",
}
STEPPED = ("pgd", "cw")  # their step count is part of the name


@dataclass(frozen=True)
class Recipe:
    """An attack as the user named it: stages run in order on the images that the ones before left standing."""

    name: str
    stages: tuple[Attack, ...] = ()
    eot: int = field(default=1)  # forward passes averaged per evaluation, for randomised models

    def parameters(self) -> dict[str, Any]:
        """Every parameter of every stage, as plain JSON types."""
        stages = [
            {"attack": stage_name(s), **{name: getattr(s, name) for name in s.fixed}, **options(s)} for s in self.stages
        ]
        return {"name": self.name, "eot": self.eot, "stages": stages}


def stage_name(stage: Attack) -> str:
    """`pgd-10`, `apgd-ce`: the name that breaks images in the results."""
    return f"{stage.name}-{stage.iterations}" if stage.name in STEPPED else stage.name


def options(stage: Attack) -> dict[str, Any]:
    """The options of an attack and their values; what makes it the attack it is, is none."""
    hidden = {"loss", *stage.fixed, *(() if stage.targets else ("targets",))}
    return {f.name: getattr(stage, f.name) for f in fields(stage) if f.name not in hidden}  # type: ignore[arg-type]


def parse_recipe(text: str) -> Recipe:
    """A recipe from `NAME`, `NAME-K` (pgd, cw) or `NAME(option=value,...)`, or several of these joined by `+`.

    Raises AttackError for an unknown name or option, or a value that makes no sense.
    """
    parts = re.split(r"\+(?![^(]*\))", text)  # a plus inside parentheses is of a number
    if len(parts) > 1:
        chain = [parse_recipe(part) for part in parts]
        if any(recipe.eot != 1 or not recipe.stages for recipe in chain):
            raise AttackError(f"Attack {text!r} joins attacks, which cannot be none or have eot; use a recipe file.")
        return Recipe(text.strip(), tuple(stage for recipe in chain for stage in recipe.stages))
    try:
        name, given = parse_call(text)
    except ValueError as error:
        raise AttackError(f"Attack {text!r}: {error}, as in pgd-10 or apgd-ce(iterations=50).") from None
    stem, _, steps = name.rpartition("-")
    eot = _positive(text, "eot", given.pop("eot", 1))
    if steps.isdigit():
        name = stem
        if name not in STEPPED:
            raise _unknown(text)
        if "iterations" in given:
            raise AttackError(f"Attack {text!r} gives its step count twice; write {name}-10, for example.")
        given["iterations"] = int(steps)
    elif name in STEPPED and "iterations" not in given:
        raise AttackError(f"Attack {text!r} needs a step count: {name}-10, for example.")
    if name in SUITES:
        if given:
            raise AttackError(f"Suite {name!r} has no option {next(iter(given))!r}; give options to a single attack.")
        return Recipe(text.strip(), tuple(ATTACKS[stage]() for stage in SUITES[name]), eot)
    if name not in ATTACKS:
        raise _unknown(text)
    return Recipe(text.strip(), (_build(text, ATTACKS[name], given),), eot)


def _unknown(text: str) -> AttackError:
    names = [*(f"{n}-10" if n in STEPPED else n for n in ATTACKS), *SUITES]
    hint = did_you_mean(text, names)
    return AttackError(f"Unknown attack {text!r}.{hint} `clipguard list attacks` shows all.")


def _build(text: str, kind: type[Attack], given: dict[str, Value]) -> Attack:
    known = options(kind())
    for key, value in given.items():
        if key not in known:
            raise AttackError(f"Attack {text!r} has no option {key!r}; it has {', '.join(known)}.")
        if isinstance(known[key], bool):
            if not isinstance(value, bool):
                raise AttackError(f"Attack {text!r}: {key} must be true or false.")
        elif key == "step_size":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 2:
                raise AttackError(f"Attack {text!r}: step_size is a fraction of eps, above 0 and at most 2.")
        else:
            _positive(text, key, value)
    return kind(**given)


def _positive(text: str, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AttackError(f"Attack {text!r}: {key} must be a whole number of at least 1.")
    return value
