"""What a release needs beside building and uploading: `.github/workflows/release.yml` calls it.

`release.py check TAG` says whether tag, version, changelog and citation agree; exit code 1 if they do not.
`release.py notes TAG` prints the changelog's section of that version.
`release.py links OWNER/NAME TAG` prints the README with absolute addresses, for the package index, which has no files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(\]\(|(?:href|src|srcset)=")(?![a-z]+:|#)([^)"\s]+)')  # not with a scheme, and not within the page
PICTURES = (".png", ".svg")


def section(changelog: str, version: str) -> tuple[str, str]:
    """Date and text of a version's section; both empty if there is none."""
    parts = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for part in parts:
        heading, _, text = part.partition("\n")
        found = re.fullmatch(r"\[(\S+)\] - (\d{4}-\d\d-\d\d)", heading.strip())
        if found and found[1] == version:
            return found[2], text.strip()
    return "", ""


def written_version(root: Path) -> tuple[str, str]:
    """The file that pyproject.toml names for it, and the version in it."""
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    place = re.search(r'^\[tool\.hatch\.version\]\s+path = "(.*)"$', project, re.MULTILINE)
    if place is None:
        return "pyproject.toml", ""
    found = re.search(r'^__version__ = "(.*)"$', (root / place[1]).read_text(encoding="utf-8"), re.MULTILINE)
    return place[1], found[1] if found else ""


def problems(root: Path, tag: str) -> list[str]:
    """What is wrong with releasing this tree as `tag`, a line each."""
    version = tag.removeprefix("v")
    found = []
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        found.append(f"the tag {tag} is not v1.2.3, v1.2.3a1, v1.2.3b1 or v1.2.3rc1")
    file, written = written_version(root)
    if written != version:
        found.append(f"the tag is {tag}, and {file} says {written or 'nothing'}")
    date, text = section((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if not text:
        found.append(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD' with text in it")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    for key, value in (("version", version), ("date-released", date)):
        cited = re.search(rf'^{key}: "?([^"\n]*)"?$', citation, re.MULTILINE)
        if value and (cited is None or cited[1] != value):
            found.append(f"CITATION.cff says {key} {cited[1] if cited else 'not at all'}, and it is {value}")
    return found


def absolute(readme: str, repository: str, tag: str) -> str:
    """The README with links and pictures that work anywhere, at the state of `tag`."""

    def change(match: re.Match[str]) -> str:
        path = match[2].removeprefix("./")
        raw = path.partition("#")[0].endswith(PICTURES)
        start = "https://raw.githubusercontent.com" if raw else "https://github.com"
        return f"{match[1]}{start}/{repository}/{'' if raw else 'blob/'}{tag}/{path}"

    return LINK.sub(change, readme)


def main(arguments: Sequence[str]) -> int:
    """Run one of the three; see above."""
    match arguments:
        case ["check", tag]:
            found = problems(ROOT, tag)
            print("\n".join(found) or f"{tag}: tag, version, changelog and citation agree")
            return 1 if found else 0
        case ["notes", tag]:
            print(section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), tag.removeprefix("v"))[1])
        case ["links", repository, tag]:
            print(absolute((ROOT / "README.md").read_text(encoding="utf-8"), repository, tag), end="")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
