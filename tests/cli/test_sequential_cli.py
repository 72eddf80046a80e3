"""`clipguard compare --sequential` as a CI runs it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tiny_models import BLIND

from clipguard.cli import run

FAST = ["-d", "emoji-food", "--attack", "none", "-n", "60"]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


def test_it_stops_early_and_every_output_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stopped = "stopped at 20 of 60 images (67 % saved), looked at 20 a data set"
    arguments = ["-q", "compare", "tiny", BLIND, *FAST, "--sequential", "--first", "20", "--junit", "junit.xml"]
    assert run([*arguments, "--format", "json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["sequential"]["looks"] == [20]
    assert found["cells"][0]["n"] == 20
    properties = ET.parse("junit.xml").getroot().iter("property")
    assert ("sequential", stopped) in [(p.get("name"), p.get("value")) for p in properties]
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.name != "store")
    assert json.loads((folder / "results.json").read_text())["run"]["plan"]["part"] == [0, 20]
    assert run(["compare", str(folder / "results.json"), str(folder)]) == 2  # two models in it
    capfd.readouterr()
    assert run([*arguments, "--format", "md"]) == 1
    assert f"Sequential: {stopped}." in capfd.readouterr().out


def test_the_table_and_its_exit_codes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    same = ["compare", "tiny", "tiny", *FAST, "--sequential", "--first", "45", "--fail-on", "inconclusive"]
    assert run([*same, "--max-drop", "10"]) == 0
    out, err = capfd.readouterr()
    assert "no regression" in out
    assert "stopped at 45 of 60 images" in out
    assert "45 of 60 images a data set: no regression" in err
    assert max(map(len, out.splitlines())) <= 80
    assert run([*same, "--max-drop", "1"]) == 3
    out, _ = capfd.readouterr()
    assert "all 60 images, looked at 45, 60 a data set" in " ".join(out.split())
    assert "about 450 images would decide" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["tiny", BLIND, "--first", "20"], "--first is for --sequential"),
        (["tiny", BLIND, "--sequential", "--first", "0"], "--first must be a whole number of at least 1"),
    ],
)
def test_bad_input(arguments: list[str], hint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *arguments, *FAST]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert hint in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())
