"""Fine-tuning methods by name: `tima`, `tima(margin_mode=similarity,lam_mhe=2)`."""

from __future__ import annotations

from typing import Any

from clipguard.core.errors import FinetuneError
from clipguard.core.plugins import Registry
from clipguard.core.spec import NAME, NamedKinds
from clipguard.finetuning.methods.base import Method
from clipguard.finetuning.methods.captions.advflyp import AdvFLYP
from clipguard.finetuning.methods.captions.delta_clip import DeltaCLIPStyle
from clipguard.finetuning.methods.captions.leaf import LEAF
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
from clipguard.finetuning.methods.prompts.apt import APT
from clipguard.finetuning.methods.prompts.fap import FAP

CALLS = NamedKinds("method", "tima(lam_mhe=2,margin_mode=similarity)", FinetuneError)


def _add_plugin(_: str, kind: Any) -> None:
    """A method of another package; the name of its entry point means nothing."""
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise FinetuneError(f"it must be a subclass of clipguard.finetuning.methods.base.Method, not {kind!r}")
    register_method(kind)


METHODS: Registry[type[Method]] = Registry(
    {
        kind.name: kind
        for kind in (
            *(TIMA, TeCoA, FARE, PMGAFT, SimCLIP, TGAZSR, CompTGA, LAAT, AGFT, SAFT, TRADES, Clean),
            *(AdvFLYP, DeltaCLIPStyle, LEAF),
            *(APT, FAP),
        )
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
        FinetuneError: for a name that is taken, or that cannot be written where a method is named, and for a class that
            edits captions without an objective for that.
    """
    if kind.name in METHODS:
        raise FinetuneError(f"There is a method {kind.name!r} already; give {kind.__name__} another name.")
    if not NAME.fullmatch(kind.name):
        raise FinetuneError(
            f"{kind.name!r} is no name of a method: lower-case letters, digits and dashes, as in pmg-aft."
        )
    if kind.edits is not Method.edits and kind.edit_objective is Method.edit_objective:
        raise FinetuneError(f"{kind.__name__} edits captions, and needs a method 'edit_objective'; write it.")
    METHODS[kind.name] = kind
    return kind


def parse_method(text: str) -> Method:
    """A method from `NAME` or `NAME(option=value,...)`.

    Raises:
        FinetuneError: for an unknown name or option, and for a value that is of another type than the option's, not
            among its choices, negative or not finite.
    """
    return CALLS.make(text, METHODS)
