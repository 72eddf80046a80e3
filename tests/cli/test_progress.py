"""Progress where stderr is no terminal: a line now and then, and none with --quiet."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pytest

from clipguard.cli import run
from clipguard.cli.console import progress as module
from clipguard.cli.console.progress import RichProgress

EVERY = 0.05


@pytest.fixture(autouse=True)
def _log_as_on_the_command_line() -> None:
    logging.getLogger("clipguard").setLevel(logging.INFO)


def test_a_line_comes_every_so_often_even_while_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with RichProgress(EVERY) as progress:
        progress.start("tiny · photos · pgd-10", 2)
        progress.advance("1,234 passes")
        time.sleep(4.5 * EVERY)
        progress.advance("2,468 passes")
        time.sleep(2.5 * EVERY)  # over: nothing more to say
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 6
    assert re.fullmatch(r"tiny · photos · pgd-10: 1 of 2, 1,234 passes, \d+ s", lines[0])
    assert re.fullmatch(r"tiny · photos · pgd-10: 2 of 2, 2,468 passes, \d+ s", lines[-1])
    assert sum("2 of 2" in line for line in lines) == 1


def test_short_stretches_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with RichProgress(60) as progress:
        progress.start("reading", 1)
        progress.advance()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_a_command_tells_and_is_quiet_when_told_so(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "EVERY", EVERY)
    flags = ["-q"] if quiet else []
    data = ["-d", "emoji-food", "-n", "8", "--attack", "pgd-10", "--no-store", "--out", str(tmp_path / "out")]
    assert run([*flags, "bench", *data]) == 0
    err = capsys.readouterr().err
    assert bool(re.search(r"tiny · emoji-food · pgd-10: \d of 8, .*passes, \d+ s\n", err)) is not quiet
    assert err == "" or not quiet
