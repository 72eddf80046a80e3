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


def compare_step(inputs: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the step that compares, with inputs and defaults filled in."""
    values = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()} | inputs
    step = ACTION["runs"]["steps"][-1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
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


@pytest.mark.parametrize(
    ("candidate", "fail_on", "code"),
    [("tiny#normalization=9,9,9/0.1,0.1,0.1", "regression", 1), ("tiny", "inconclusive", 3), ("tinny", "any-drop", 2)],
)
def test_the_step_compares_and_reports(base: Path, tmp_path: Path, candidate: str, fail_on: str, code: int) -> None:
    inputs = {"base": str(base), "candidate": candidate, "fail-on": fail_on, "arguments": "--device cpu --batch-size 6"}
    done = compare_step(inputs, tmp_path)
    assert done.returncode == code, done.stderr
    if code == 2:
        assert done.stderr.startswith("Error: tinny")
        return
    report = (tmp_path / "clipguard-compare.md").read_text()
    assert report == (tmp_path / "summary.md").read_text() == done.stdout
    assert "| emoji-food | clean | 12 |" in report
    assert done.stderr.startswith("::error title=clipguard compare")
    assert (tmp_path / "output").read_text() == f"report={tmp_path}/clipguard-compare.md\n"
    assert ET.parse(tmp_path / "clipguard-compare.xml").getroot().find("testsuite/testcase/failure") is not None


def test_every_input_is_described_and_used() -> None:
    used = str(ACTION["runs"])
    for name, spec in ACTION["inputs"].items():
        assert spec["description"]
        assert f"inputs.{name}" in used
