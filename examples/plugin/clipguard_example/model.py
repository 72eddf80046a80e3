"""A checkpoint under a name of its own, with what a reader must know of it."""

from __future__ import annotations

from clipguard.models.sources.published import Published

TINY_AGAIN = Published(
    name="tiny-again",
    at="tiny",
    method="none",
    architecture="the embedded model's",
    trained_on="emoji",
    eps="0",
    paper="an example",
    evaluated="not",
)
