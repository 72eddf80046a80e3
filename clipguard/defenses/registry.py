"""Defences by name: `ttc`, `jpeg(quality=75)`, and chains of them: `jpeg+ttc`."""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

from clipguard.core.errors import DefenseError
from clipguard.core.plugins import Registry
from clipguard.core.spec import NAME, NamedKinds
from clipguard.defenses.base import Defense, Purifier
from clipguard.defenses.methods.anti_adversary import AntiAdversary
from clipguard.defenses.methods.bit_depth import BitDepth
from clipguard.defenses.methods.clipure_cos import CLIPureCos
from clipguard.defenses.methods.csr import CSR
from clipguard.defenses.methods.doc import DOC
from clipguard.defenses.methods.et3 import ET3
from clipguard.defenses.methods.jpeg import JPEG
from clipguard.defenses.methods.r_tpt import RTPT
from clipguard.defenses.methods.random_resize import RandomResize
from clipguard.defenses.methods.smoothing import Smoothing
from clipguard.defenses.methods.ttc import TTC
from clipguard.defenses.methods.tte import TTE

CALLS = NamedKinds("defence", "ttc or jpeg(quality=75)", DefenseError, "Defence {text!r}: {option}", None)
PLUS_BETWEEN = re.compile(r"\+(?![^(]*\))")  # a plus inside parentheses is of a number


def _add_plugin(_: str, kind: Any) -> None:
    """A defence of another package; the name of its entry point means nothing."""
    if not (isinstance(kind, type) and issubclass(kind, Defense)):
        raise DefenseError(f"it must be a subclass of clipguard.defenses.base.Defense, not {kind!r}")
    register_defense(kind)


BUILT_IN: tuple[type[Defense], ...] = (
    AntiAdversary,
    BitDepth,
    CLIPureCos,
    CSR,
    DOC,
    ET3,
    JPEG,
    RandomResize,
    RTPT,
    Smoothing,
    TTC,
    TTE,
)
DEFENSES: Registry[type[Defense]] = Registry({kind.name: kind for kind in BUILT_IN}, "clipguard.defenses", _add_plugin)


def register_defense(kind: type[Defense]) -> type[Defense]:
    """Make one more defence known by its name. Can be a class decorator.

    Args:
        kind: a frozen dataclass with `name`, `summary` and `citation`; all its options have defaults.

    Returns:
        The same class.

    Raises:
        DefenseError: for a name that is taken, or that cannot be written where a defence is named; for a class without
            a method that it needs: `flagged` if it is gated, `purify`, and `differentiable` beside the identity.
    """
    if DEFENSES.get(kind.name, kind) is not kind:
        raise DefenseError(f"There is a defence {kind.name!r} already; give {kind.__name__} another name.")
    if not NAME.fullmatch(kind.name):
        raise DefenseError(f"{kind.name!r} is no name of a defence: lower-case letters, digits and dashes, as in ttc.")
    lacking = [method for method in _promised(kind) if getattr(kind, method) is getattr(Purifier, method)]
    if lacking:
        raise DefenseError(f"{kind.__name__} needs a method {lacking[0]!r} for what it says of itself; write it.")
    DEFENSES[kind.name] = kind
    return kind


def _promised(kind: type[Defense]) -> list[str]:
    """Methods that a class needs for what its attributes say."""
    methods = ["flagged"] if kind.gated else []
    if kind.relaxations is not Defense.relaxations:
        methods.append("relaxed")
    if issubclass(kind, Purifier) and kind.logits is Purifier.logits:
        methods.append("purify")
        if set(kind.backwards) != {"identity"}:
            methods.append("differentiable")
    return methods


def source_sha256(kind: type[Defense]) -> str:
    """SHA-256 of the file that a defence is written in. Raises DefenseError where there is none, as in a prompt."""
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(kind) or "").read_bytes()).hexdigest()
    except (OSError, TypeError) as error:
        raise DefenseError(
            f"Defence {kind.name!r} is written in no file, so that stored results of it cannot be told from those of "
            "another: run it without `store`, or write it in a module."
        ) from error


def parse_defenses(text: str) -> tuple[Defense, ...]:
    """Defences from `NAME` or `NAME(option=value,...)`, or several joined by `+`: an image meets the first one first.

    Raises:
        DefenseError: for an unknown name or option, or a value that makes no sense.
    """
    return tuple(CALLS.make(part, DEFENSES) for part in PLUS_BETWEEN.split(text))


def check_votes(votes: int) -> None:
    """Raises DefenseError for a number of votes that need not have a majority."""
    if votes % 2 == 0:
        raise DefenseError(f"`votes` must be odd, so that a majority decides, not {votes}.")
