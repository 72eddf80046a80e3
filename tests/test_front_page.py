"""What a visitor sees first: README, pictures, citation, issue forms, and the release that shows them elsewhere."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

import clipguard
from clipguard.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGES = ROOT / "docs" / "images"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RELEASE = runpy.run_path(str(ROOT / ".github" / "release.py"))
ZIZMOR = shutil.which("zizmor", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
CHANGELOG = (
    "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n### Added\n\n- A thing.\n\n## [1.2.2] - 2026-01-01\n"
)


def links(text: str) -> list[str]:
    """Targets of links and pictures, but for those elsewhere and within the page."""
    return [match[2] for match in RELEASE["LINK"].finditer(text)]


def test_the_readme_is_a_screen_and_a_half_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 95
    assert README.count("<picture>") == 1
    assert len(re.findall(r"^\| ?---", README, re.MULTILINE)) == 2, "commands and defences"
    assert len(re.findall(r"\]\(", README)) == 5
    assert "make bench" in README.split("```")[1]
    assert "make test" in README.split("```")[1]
    for target in links(README):
        assert (ROOT / target.partition("#")[0]).is_file(), target


def test_pictures_are_small_in_pairs_and_shown() -> None:
    files = sorted(IMAGES.iterdir())
    assert sum(file.stat().st_size for file in files) < 1_500_000
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for file in files:
        assert f"images/{file.name}" in shown, f"{file.name} is on no page"
        with Image.open(file) as picture:
            picture.load()
            if file.stem.endswith("-light"):
                with Image.open(file.with_stem(file.stem.replace("-light", "-dark"))) as other:
                    assert other.size == picture.size


@cache
def command_line() -> Any:
    """All commands: typer's own copy of click, or click."""
    return typer.main.get_command(app)


def commands(text: str) -> Iterator[list[str]]:
    """Lines of a page's code blocks that run clipguard, as words."""
    for block in re.findall(r"^```(?:console|shell)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?clipguard [a-z]", line):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                yield words[1 : words.index(">") if ">" in words else None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_a_page_have_the_options_that_they_show(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        command = command_line()
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known | {"--help"}, words


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == clipguard.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_issue_forms_are_forms() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
    assert len(forms) == 4
    for file in forms:
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        parts = [part for part in form["body"] if part["type"] != "markdown"]
        assert len({part["id"] for part in parts}) == len(parts)
        assert any(part.get("validations", {}).get("required") for part in parts)
        assert all(part["type"] in ("textarea", "input", "dropdown", "checkboxes") for part in parts)
        assert all(part["attributes"]["label"] for part in parts)


# The release


def tree(folder: Path, version: str = "1.2.3", changelog: str = CHANGELOG, citation: str = "") -> Path:
    """What `release.py` looks at."""
    file, _ = RELEASE["written_version"](ROOT)
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text(f'__version__ = "{version}"\n')
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "CHANGELOG.md").write_text(changelog)
    (folder / "CITATION.cff").write_text(citation or 'version: 1.2.3\ndate-released: "2026-01-31"\n')
    shutil.copy(ROOT / "README.md", folder)
    (folder / ".github").mkdir()
    shutil.copy(ROOT / ".github" / "release.py", folder / ".github")
    return folder


def test_the_version_is_found_where_the_package_has_it() -> None:
    assert RELEASE["written_version"](ROOT)[1] == clipguard.__version__


def test_a_tag_that_fits_is_released(tmp_path: Path) -> None:
    assert RELEASE["problems"](tree(tmp_path), "v1.2.3") == []


@pytest.mark.parametrize(
    ("tag", "changes", "problem"),
    [
        ("1.2.3", {}, "the tag 1.2.3 is not v1.2.3"),
        ("v1.2.4", {"version": "1.2.3"}, "the tag is v1.2.4, and "),
        ("v1.2.3", {"changelog": "## [Unreleased]\n\n- A thing.\n"}, "CHANGELOG.md has no section '## [1.2.3]"),
        ("v1.2.3", {"changelog": "## [1.2.3] - 2026-01-31\n\n## [1.2.2] - 2026-01-01\n"}, "with text in it"),
        ("v1.2.3", {"citation": "version: 1.2.2\ndate-released: 2026-01-31\n"}, "CITATION.cff says version 1.2.2"),
        ("v1.2.3", {"citation": "version: 1.2.3\n"}, "date-released not at all, and it is 2026-01-31"),
    ],
)
def test_a_tag_that_does_not_fit_is_not(tmp_path: Path, tag: str, changes: dict[str, str], problem: str) -> None:
    assert problem in "\n".join(RELEASE["problems"](tree(tmp_path, **changes), tag))


def test_elsewhere_the_readme_has_absolute_links_to_the_tag() -> None:
    readme = RELEASE["absolute"](README, "someone/clipguard", "v1.2.3")
    assert links(readme) == []
    assert "](https://github.com/someone/clipguard/blob/v1.2.3/docs/index.md)" in readme
    assert '<img src="https://raw.githubusercontent.com/someone/clipguard/v1.2.3/docs/images/front-light.png"' in readme
    unchanged = '[a](https://x.org) [b](#here) <a href="mailto:x@y.org">'
    assert RELEASE["absolute"](unchanged, "someone/clipguard", "v1.2.3") == unchanged


def script(workflow: str, job: str, step: str) -> dict[str, Any]:
    """A step of a workflow that runs a script."""
    content = yaml.safe_load((ROOT / ".github" / "workflows" / workflow).read_text(encoding="utf-8"))
    found: dict[str, Any] = next(s for s in content["jobs"][job]["steps"] if s.get("name") == step)
    return found


def run_step(step: dict[str, Any], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script of a step, as GitHub runs it. Its variables are given, not taken from the workflow."""
    assert set(step.get("env", {})) <= set(environment), "the test gives what the step asks for"
    path = f"{folder / 'tools'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    values = {**os.environ, "PATH": path, "RUNNER_TEMP": str(temporary), **environment}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(command, cwd=folder, env=values, capture_output=True, text=True, check=False)


def tool(folder: Path, name: str, text: str) -> None:
    """A program that comes before the system's."""
    (folder / "tools").mkdir(exist_ok=True)
    (folder / "tools" / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / "tools" / name).chmod(0o755)


def test_the_workflow_stops_at_a_tag_that_does_not_fit(tmp_path: Path) -> None:
    step = script("release.yml", "build", "Tag, version, changelog and citation agree")
    folder = tree(tmp_path)
    done = run_step(step, folder, TAG="v1.2.3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "temporary" / "notes.md").read_text() == "### Added\n\n- A thing.\n"
    done = run_step(step, folder, TAG="v1.2.4")
    assert done.returncode == 1
    assert "the tag is v1.2.4" in done.stdout


def test_the_workflow_builds_with_absolute_links(tmp_path: Path) -> None:
    step = script("release.yml", "build", "Build with a README that the package index can show")
    folder = tree(tmp_path)
    tool(folder, "make", 'echo "make $*" >> log; mkdir -p dist; touch dist/a.whl dist/a.tar.gz')
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text('#!/bin/bash\necho "python $*" >> log\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    done = run_step(step, folder, TAG="v1.2.3", REPOSITORY="someone/clipguard")
    assert done.returncode == 0, done.stderr
    assert links((folder / "README.md").read_text()) == []
    assert (folder / "log").read_text().splitlines() == [
        "make build",
        "python -m pip install --quiet twine",
        "python -m twine check --strict dist/a.tar.gz dist/a.whl",
    ]


@pytest.mark.parametrize(("tag", "more"), [("v1.2.3", ""), ("v1.2.3rc1", " --prerelease")])
def test_the_workflow_releases_with_the_notes_and_files(tmp_path: Path, tag: str, more: str) -> None:
    step = script("release.yml", "release", "With the changelog's section and the files that were published")
    (tmp_path / "artifacts" / "dist").mkdir(parents=True)
    (tmp_path / "artifacts" / "dist" / "a.whl").touch()
    tool(tmp_path, "gh", 'echo "gh $*" > log')
    done = run_step(step, tmp_path, TAG=tag, GH_TOKEN="", GH_REPO="someone/clipguard")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == (
        f"gh release create {tag} artifacts/dist/a.whl --verify-tag --title clipguard {tag[1:]} "
        f"--notes-file artifacts/notes/notes.md{more}\n"
    )


@pytest.mark.slow
def test_the_workflow_tests_the_wheel(tmp_path: Path) -> None:
    """With a wheel of this tree, and an environment that has our packages in place of those of the index."""
    pytest.importorskip("hatchling", reason="no hatchling here, which builds the package: pip install '.[dev]'")
    step = script("release.yml", "test", "Install it into an environment of its own, and use it")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    folders = [folder for folder in sys.path if Path(folder).name == "site-packages"]
    tool(tmp_path, "python", f"""
        [ "$1 $2" = "-m venv" ] || exec {sys.executable} "$@"
        {sys.executable} -m venv --without-pip "$3"
        site=$("$3/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        printf '%s\\n' {shlex.join(folders)} > "$site/dependencies.pth"
    """)  # fmt: skip
    values = {"TAG": f"v{clipguard.__version__}", "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_FORCE_REINSTALL": "1"}
    values["PYTHONPATH"] = ""  # not the source
    done = run_step(step, tmp_path, **values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_and_scripts_parse(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            uses = step.get("uses", "./")
            assert uses == "./" or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", uses), uses
            parsed = subprocess.run(
                ["bash", "-n"], input=step.get("run", ""), text=True, capture_output=True, check=False
            )
            assert parsed.returncode == 0, parsed.stderr
            assert "${{" not in step.get("run", ""), "inputs reach scripts as variables"


@pytest.mark.skipif(ZIZMOR is None, reason="no zizmor here: pip install '.[dev]'")
def test_zizmor_finds_no_hole_in_the_workflows() -> None:
    assert ZIZMOR is not None
    words = ["--offline", "--no-progress", "--min-severity", "medium", str(ROOT / ".github"), str(ROOT / "action.yml")]
    done = subprocess.run([ZIZMOR, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
