"""Packages that add attacks, methods, protocols, data sets and models; and packages that cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clipguard

ROOT = Path(clipguard.__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    source.mkdir()
    copy = ["cp", "-r", str(PLUGIN) + "/.", str(source)]  # building leaves files beside the source
    subprocess.run(copy, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(source)], check=True, env=os.environ | {"PIP_USER": "0"})
    return folder


def run(site: Path, folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Command lines, one after the other, in a process that sees the packages in `site`."""
    path = os.pathsep.join([str(site), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    code = "import shlex, sys; from clipguard.cli import run; sys.exit(max(run(shlex.split(a)) for a in sys.argv[1:]))"
    command = [sys.executable, "-c", code, *commands]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_what_a_package_adds_is_like_our_own(installed: Path, tmp_path: Path) -> None:
    done = run(
        installed,
        tmp_path,
        *(f"list {what}" for what in ("attacks", "methods", "protocols", "datasets", "models")),
        "-q bench -m tiny-again -d shapes --protocol quick --attack 'mi-fgsm(iterations=3)' --no-store --no-probes "
        "--out r",
        "-q report r --gallery 0",
        "-q finetune --method 'cosine-consistency(beta=2)' --steps 2 --n-samples 20 --out t --no-evaluation "
        "--eval-samples 4 --batch-size 4",
    )
    assert (done.returncode, "The plug-in" in done.stderr) == (0, False), done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert {"mi-fgsm", "cosine-consistency", "quick", "shapes", "tiny-again"} <= set(listed)
    result = json.loads((tmp_path / "r" / "results.json").read_text())
    assert {(cell["dataset"], cell["eps"]) for cell in result["cells"]} == {("shapes", 0), ("shapes", 1), ("shapes", 4)}
    assert result["run"]["protocol"]["name"] == "quick"
    assert result["run"]["attacks"]["mi-fgsm(iterations=3)"]["stages"][0]["attack"] == "mi-fgsm"
    assert "Boosting adversarial attacks with momentum" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "t" / "run.json").read_text())["config"]["method"] == "cosine-consistency(beta=2)"


BROKEN = {
    "clipguard.attacks": ("gone", "no_such_module:Attack", "No module named 'no_such_module'"),
    "clipguard.methods": ("text", "json:__name__", "it must be a subclass of"),
    "clipguard.protocols": ("fare", "clipguard.benchmark.protocols:Protocol", "it must be a"),
    "clipguard.datasets": ("number", "sys:maxsize", "it must be a DatasetEntry"),
    "clipguard.models": ("number", "sys:maxsize", "it must be a"),
}


def test_a_broken_plugin_is_one_warning(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    points = [f"[{group}]\n{name} = {value}\n" for group, (name, value, _) in BROKEN.items()]
    (info / "entry_points.txt").write_text("\n".join(points))
    done = run(site, tmp_path, *(f"list {group.removeprefix('clipguard.')}" for group in BROKEN))
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == len(BROKEN), done.stderr
    for line, (group, (name, _, reason)) in zip(lines, BROKEN.items(), strict=True):
        assert f"The plug-in '{name}' of broken ({group}) cannot be used" in line
        assert reason in line
