"""Fine-tuning methods by name: `tima`, `tima(margin_mode=similarity,lam_mhe=2)`."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from clipguard.core.errors import FinetuneError, did_you_mean
from clipguard.core.plugins import Registry
from clipguard.core.spec import Value, parse_call
from clipguard.finetuning.methods.base import Method
from clipguard.finetuning.methods.classes.agft import AGFT
from clipguard.finetuning.methods.classes.clean import Clean
from clipguard.finetuning.methods.classes.comp_tga import CompTGA
from clipguard.finetuning.methods.classes.laat import LAAT
from clipguard.finetuning.methods.classes.pmg_aft import PMGAFT
from clipguard.finetuning.methods.classes.saft import SAFT
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.classes.tga_zsr import TGAZSR
from clipguard.finetuning.methods.classes.tima import TIMA
from clipguard.finetuning.methods.classes.trades import TRADES
from clipguard.finetuning.methods.embeddings.fare import FARE
from clipguard.finetuning.methods.embeddings.sim_clip import SimCLIP

NAME = re.compile(r"[a-z][a-z0-9-]*")  # as `parse_call` reads it


def _add_plugin(_: str, kind: Any) -> None:
    """A method of another package; the name of its entry point means nothing."""
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise FinetuneError(f"it must be a subclass of clipguard.finetuning.methods.base.Method, not {kind!r}")
    register_method(kind)


METHODS: Registry[type[Method]] = Registry(
    {
        kind.name: kind
        for kind in (TIMA, TeCoA, FARE, PMGAFT, SimCLIP, TGAZSR, CompTGA, LAAT, AGFT, SAFT, TRADES, Clean)
    },
    "clipguard.methods",
    _add_plugin,
)


def register_method(kind: type[Method]) -> type[Method]:
    """Make one more method known by its name. Can be a class decorator.

    Args:
        kind: a frozen dataclass with `name`, `summary` and `citation`; all its options have defaults.

    Returns:
        The same class.

    Raises:
        FinetuneError: for a name that is taken, or that cannot be written where a method is named.
    """
    if kind.name in METHODS:
        raise FinetuneError(f"There is a method {kind.name!r} already; give {kind.__name__} another name.")
    if not NAME.fullmatch(kind.name):
        raise FinetuneError(
            f"{kind.name!r} is no name of a method: lower-case letters, digits and dashes, as in pmg-aft."
        )
    METHODS[kind.name] = kind
    return kind


def parse_method(text: str) -> Method:
    """A method from `NAME` or `NAME(option=value,...)`.

    Raises:
        FinetuneError: for an unknown name or option, and for a value that is of another type than the option's, not
            among its choices, negative or not finite.
    """
    try:
        name, options = parse_call(text)
    except ValueError as error:
        raise FinetuneError(f"Method {text!r}: {error}, as in tima(lam_mhe=2,margin_mode=similarity).") from None
    if name not in METHODS:
        raise FinetuneError(f"Unknown method {name!r}.{did_you_mean(name, METHODS)} Known are {', '.join(METHODS)}.")
    kind = METHODS[name]
    known = [field.name for field in fields(kind)]
    types = get_type_hints(kind)
    for option, value in options.items():
        if option not in known:
            hint = did_you_mean(option, known)
            raise FinetuneError(f"Method {name!r} has no option {option!r}.{hint} It has {', '.join(known) or 'none'}.")
        _check(f"{name}: {option}", value, types[option])
    return kind(**options)


def _check(what: str, value: Value, expected: Any) -> None:
    """Raise FinetuneError unless the value is of the option's type: a Literal, bool, or a number."""
    if get_origin(expected) is Literal:
        if value not in get_args(expected):
            raise FinetuneError(f"{what} must be {' or '.join(get_args(expected))}, not {value}.")
    elif expected is bool:
        if not isinstance(value, bool):
            raise FinetuneError(f"{what} must be true or false, not {value}.")
    elif isinstance(value, (bool, str)) or not 0 <= value < math.inf:
        raise FinetuneError(f"{what} must be a number of at least 0, not {value}.")
