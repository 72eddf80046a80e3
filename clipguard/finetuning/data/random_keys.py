"""Seeds of everything random in training, each from the run's seed and what it is for."""

from __future__ import annotations

import hashlib


def random_key(seed: int, when: int, what: int) -> int:
    """62 bits to seed a generator with: for an image (`what`) in an epoch (`when`), or a process at a step."""
    digest = hashlib.sha256(f"{seed}/{when}/{what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
