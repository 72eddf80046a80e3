"""What long work tells about itself while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a run tells about itself while it runs; the CLI draws it."""

    def start(self, what: str, total: int) -> None:
        """A stretch of work begins."""

    def advance(self, note: str = "") -> None:
        """One more image is done."""


class Silent:
    """No progress."""

    def start(self, what: str, total: int) -> None:
        """Nothing."""

    def advance(self, note: str = "") -> None:
        """Nothing."""
