"""Nothing that a command prints or writes has changed, but for what record/ says (see runs.py)."""

from __future__ import annotations

import difflib
import platform
import re
from pathlib import Path

import pytest
import runs
from golden_text import Section, parse

NAMES = [command.name for command in runs.commands()]
MOST_LINES = 40
PROCESSOR = re.compile(r"^processor .*$", re.MULTILINE)
AGAIN = "If that is meant: python tests/golden/runs.py --record, and name the reason in CHANGELOG.md."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands leave now."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the record holds the bits of x86-64 processors, and this is {platform.machine()}")
    folder = tmp_path_factory.mktemp("golden")
    runs.make_record(folder)
    return folder


def differences(expected: list[Section], found: list[Section]) -> list[str]:
    """Where two records differ: in which stream or file, at which key."""
    lines = []
    old, new = ({section.title: section for section in sections} for sections in (expected, found))
    for title in [*old, *(new.keys() - old.keys())]:
        if title not in new or title not in old:
            lines.append(f"{title}: {'no longer there' if title in old else 'new'}")
        elif old[title] != new[title]:
            changed = list(difflib.unified_diff(old[title].flat(), new[title].flat(), lineterm="", n=0))[2:]
            lines += [f"{title}:", *(f"  {line[:400]}" for line in changed if not line.startswith("@@"))]
    if not lines and [s.title for s in expected] != [s.title for s in found]:
        lines.append("the order of the files")
    return lines


def shapes(sections: list[Section]) -> list[tuple[str, tuple[str, ...]]]:
    """What libraries of other versions leave as it is."""
    places = {section.place(): section.shape() for section in sections[1:]}
    return sorted((place, tuple(shape)) for place, shape in places.items())


def test_the_record_is_of_these_commands() -> None:
    assert sorted(path.stem for path in runs.RECORD.glob("*.txt")) == sorted([*NAMES, Path(runs.MADE_WITH).stem])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_and_written_is_as_recorded(name: str, made: Path) -> None:
    expected, found = (parse((folder / f"{name}.txt").read_text("utf-8")) for folder in (runs.RECORD, made))
    if expected == found:
        return
    told = differences(expected, found)
    more = [f"... and {len(told) - MOST_LINES} lines more"] if len(told) > MOST_LINES else []
    message = "\n".join([f"{found[0].title}", *told[:MOST_LINES], *more])
    recorded, here = (runs.RECORD / runs.MADE_WITH).read_text(), runs.made_with()
    if PROCESSOR.findall(recorded) != PROCESSOR.findall(here) and expected[0].lines == found[0].lines:
        pytest.skip(
            "recorded on another processor, whose last bits differ here: compare with a record made on this one"
        )
    if recorded != here and expected[0].lines == found[0].lines and shapes(expected) == shapes(found):
        other = sorted(set(recorded.splitlines()) - set(here.splitlines()))
        pytest.skip(f"recorded with {', '.join(other)}: only files, columns and keys were compared")
    pytest.fail(f"{message}\n{AGAIN}", pytrace=False)
