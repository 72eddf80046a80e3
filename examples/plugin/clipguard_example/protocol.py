"""A protocol: settings that belong together, under one name."""

from __future__ import annotations

from clipguard.benchmark.protocols import Protocol

QUICK = Protocol(
    "a first look: 50 images, PGD-10, eps 1 and 4",
    attacks=("pgd-10",),
    eps=(1, 4),
    n_samples=50,
)
