"""The GitHub Action: its script is run as GitHub runs it, with the embedded model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipguard.cli import run

ACTION: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "action.yml").read_text())


def compare_step(inputs: dict[str, str], folder: Path, tools: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the step that compares, with inputs and defaults filled in. tools: a folder with another `python`."""
    values = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()} | inputs
    step = ACTION["runs"]["steps"][-1]
    environment = {
        **os.environ,
        "PATH": f"{tools or Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RUNNER_TEMP": str(folder),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        **{name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], v) for name, v in step["env"].items()},
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # GitHub's `shell: bash`
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    arguments = ["-d", "emoji-food", "--attack", "none", "-n", "12", "--no-store", "--out", str(tmp_path / "base")]
    assert run(["-q", "bench", *arguments]) == 0
    return tmp_path / "base"


def inputs(base: Path, candidate: str, fail_on: str) -> dict[str, str]:
    return {"base": str(base), "candidate": candidate, "fail-on": fail_on, "arguments": "--device cpu --batch-size 6"}


def test_the_step_compares_and_reports(base: Path, tmp_path: Path) -> None:
    done = compare_step(inputs(base, "tiny#normalization=9,9,9/0.1,0.1,0.1", "regression"), tmp_path)
    assert done.returncode == 1, done.stderr
    report = (tmp_path / "clipguard-compare.md").read_text()
    assert report == (tmp_path / "summary.md").read_text() == done.stdout
    assert "| emoji-food | clean | 12 |" in report
    assert done.stderr.startswith("::error title=clipguard compare")
    assert (tmp_path / "output").read_text() == f"report={tmp_path}/clipguard-compare.md\n"
    assert ET.parse(tmp_path / "clipguard-compare.xml").getroot().find("testsuite/testcase/failure") is not None


@pytest.mark.parametrize(("candidate", "fail_on", "code"), [("tiny", "inconclusive", 3), ("tinny", "any-drop", 2)])
def test_the_step_ends_as_the_command_does(
    base: Path,
    tmp_path: Path,
    candidate: str,
    fail_on: str,
    code: int,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command is run here, and a `python` that knows what came of it stands in the step's way."""
    python = tmp_path / "tools" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{tmp_path}/seen\ncat {tmp_path}/said\nexit {code}\n")
    python.chmod(0o755)
    (tmp_path / "said").touch()
    compare_step(inputs(base, candidate, fail_on), tmp_path, python.parent)
    module, name, *line = (tmp_path / "seen").read_text().splitlines()
    assert (module, name) == ("-m", "clipguard")
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    assert run(line) == code
    out, err = capfd.readouterr()
    assert err.startswith("Error: tinny" if code == 2 else "::error title=clipguard compare")
    (tmp_path / "said").write_text(out)
    (tmp_path / "summary.md").unlink()
    done = compare_step(inputs(base, candidate, fail_on), tmp_path, python.parent)
    assert done.returncode == code, done.stderr
    assert ("| emoji-food | clean | 12 |" in out) == (code == 3)
    assert done.stdout == out
    assert (tmp_path / "clipguard-compare.md").read_text() == (tmp_path / "summary.md").read_text() == out


def test_every_input_is_described_and_used() -> None:
    used = str(ACTION["runs"])
    for name, spec in ACTION["inputs"].items():
        assert spec["description"]
        assert f"inputs.{name}" in used
