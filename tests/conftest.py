"""Tests run in a folder of their own, which they leave empty: what one leaves, the next would read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main


@pytest.fixture(scope="session", autouse=True)
def working_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Not the repository: a default folder such as `runs/` would be made there."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("working-directory")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def vocabulary() -> Iterator[None]:
    """CLIP's vocabulary is read once, and each architecture built once: most of the time of loading a small model."""
    if "open_clip" not in sys.modules:  # none of the tests that were collected needs it
        yield
        return
    from shared_models import shared_models
    from shared_vocabulary import shared_vocabulary

    with shared_vocabulary(), shared_models():
        yield


@pytest.fixture(scope="session", autouse=True)
def commands() -> Iterator[None]:
    """Typer makes its commands anew for every command line, a tenth of the time of a small one: here once an app."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def short_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's Square attack with few of its queries, which take most of its time where images are few."""
    monkeypatch.setattr("clipguard.sanity.examination.SQUARE_QUERIES", 20)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(working_directory: Path) -> Iterator[None]:
    """Fails a test that leaves files in the working directory; `tmp_path` and `monkeypatch.chdir` are for them."""
    yield
    left = sorted(path.name for path in working_directory.iterdir())
    for name in left:
        (working_directory / name).rename(working_directory.with_name(f"left-{os.urandom(4).hex()}"))
    assert not left, f"the test leaves {', '.join(left)} in the working directory"
