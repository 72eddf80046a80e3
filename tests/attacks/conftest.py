"""What the tests of attacks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clipguard.attacks.registry import ATTACKS


@pytest.fixture
def restored_registry() -> Iterator[None]:
    """Leaves the registry of attacks as it was."""
    before = dict(ATTACKS)
    yield
    ATTACKS.clear()
    ATTACKS.update(before)
