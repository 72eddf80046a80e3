"""CLIP's vocabulary read once in a test session: open_clip reads its 48,894 merges anew for every tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer


@contextmanager
def shared_vocabulary() -> Iterator[None]:
    """Tokenizers made inside have the tables of the first one with the same settings, and a cache of their own."""
    made: dict[str, dict[str, Any]] = {}
    read = SimpleTokenizer.__init__

    def share(self: SimpleTokenizer, context_length: int | None = DEFAULT_CONTEXT_LENGTH, **settings: Any) -> None:
        key = repr(sorted(settings.items()))
        if key not in made:
            read(self, **settings)
            made[key] = {**vars(self), "cache": dict(self.cache)}
        vars(self).update(made[key], cache=dict(made[key]["cache"]), context_length=context_length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimpleTokenizer, "__init__", share)
        yield
