"""Defences at test time: what stands around a classifier, and what an attacker needs to know of it."""

from __future__ import annotations

from typing import Literal, get_args

Threat = Literal["transfer", "adaptive", "black-box"]
"""What an attacker does: images made on the undefended model, attacks through the defence, or queries alone."""

THREATS: tuple[Threat, ...] = get_args(Threat)
