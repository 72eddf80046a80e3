"""Small real runs to report on."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipguard.cli import run

FAST = ["--attack", "pgd-10,fgsm", "--eps", "1,4,8", "-n", "12", "--no-store"]
WORSE = "tiny#normalization=0,0,0/0.5,0.5,0.5"  # so that two models are told apart


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `both` (two models and data sets, no probes), `other` (tiny on a third), `images` (of `attack`)."""
    folder = tmp_path_factory.mktemp("runs")
    sets = ["-d", "emoji-food", "-d", "emoji-animals"]
    two = ["-m", "tiny", "-m", WORSE, *sets, "--no-probes"]
    assert run(["-q", "bench", *two, *FAST, "--out", str(folder / "both")]) == 0
    assert run(["-q", "bench", "-d", "emoji-travel", *FAST, "--out", str(folder / "other")]) == 0
    attack = ["attack", "-d", "emoji-food", "--attack", "pgd-10", "--eps", "8", "-n", "4"]
    assert run(["-q", *attack, "--out", str(folder / "images")]) == 0
    return folder
