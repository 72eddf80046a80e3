"""Regularisers by name: `regmix(alpha=1,gamma=0)`."""

from __future__ import annotations

from clipguard.core.errors import FinetuneError
from clipguard.core.spec import NamedKinds
from clipguard.finetuning.methods.regularizers.base import Regularizer
from clipguard.finetuning.methods.regularizers.regmix import RegMix

REGULARIZERS: dict[str, type[Regularizer]] = {kind.name: kind for kind in (RegMix,)}
CALLS = NamedKinds("regularizer", "regmix(alpha=1,beta=0.5,gamma=0)", FinetuneError)


def parse_regularizer(text: str) -> Regularizer:
    """A regulariser from `NAME` or `NAME(option=value,...)`.

    Raises:
        FinetuneError: for an unknown name or option, or a value that no option takes.
    """
    return CALLS.make(text, REGULARIZERS)
