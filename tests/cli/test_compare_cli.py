"""`clipguard compare` as a CI runs it: real runs of the embedded model, exit codes, files and streams."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tiny_models import BLIND

from clipguard.cli import run

FAST = ["-d", "emoji-food", "--attack", "pgd-2", "--eps", "1", "-n", "12"]
CLEAN = ["--metric", "clean"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert run(["-q", "bench", *FAST, "--no-store", "--out", str(folder / "good")]) == 0
    assert run(["-q", "bench", *FAST, "-m", BLIND, "--no-store", "--out", str(folder / "blind")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good", "blind"):
        shutil.copytree(runs / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["good", "good"], 0),  # inconclusive with 12 images, and nobody asked
        (["blind", "good"], 0),
        (["good", "blind"], 1),
        (["good", "blind", "--max-drop", "90", "--fail-on", "any-drop"], 0),
        (["good", "blind", "--alpha", "0.0001"], 0),
        (["good", "blind", "--alpha", "0.0001", "--fail-on", "any-drop"], 1),
        (["good", "blind", "--alpha", "0.0001", "--fail-on", "inconclusive"], 3),
        (["good", "good", "--fail-on", "inconclusive"], 3),
        (["good", "blind", "--fail-on", "inconclusive"], 1),
        (["blind", "good", "--fail-on", "inconclusive"], 0),
        (["good/results.json", "good/results.json"], 0),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    assert run(["compare", *arguments, *CLEAN]) == code


BAD = {
    "no such result": (["good", "nowhere"], "holds no results.json"),
    "no such file": (["good", "nowhere/results.json"], "cannot be read"),
    "unknown model": (["good", "tinny"], "Did you mean 'tiny'"),
    "negative drop": (["good", "good", "--max-drop", "-1"], "--max-drop"),
    "alpha": (["good", "good", "--alpha", "2"], "--alpha"),
    "metric": (["good", "good", "--metric", "clean,robst"], "'robst'"),
    "no average of one set": (["good", "good", "--metric", "average"], "--metric average"),
    "fail-on": (["good", "good", "--fail-on", "rain"], "any-drop"),
    "options beside results": (["good", "tiny", "--eps", "4"], "--eps is for models"),
    "samples beside results": (["good", "good", "-n", "4"], "--n-samples is for models"),
    "unknown data set": (["tiny", BLIND, "-d", "emoji-fod"], "emoji-food"),
    "junit nowhere": (["good", "good", "--junit", "good/results.json/x.xml"], "cannot be written"),
}


@pytest.mark.parametrize(("arguments", "hint"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2_and_touches_nothing(
    arguments: list[str], hint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert {p.name for p in tmp_path.iterdir()} == {"good", "blind"}


def test_what_is_not_alike_is_exit_2_and_force_compares_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "bench", *FAST[:-1], "10", "--quantize", "--out", "other"]) == 0
    capfd.readouterr()
    assert run(["compare", "good", "other"]) == 2
    err = capfd.readouterr().err
    assert "quantize is False in BASE and True in CANDIDATE; emoji-food has other images" in err
    assert err.count("\n") == 1
    assert run(["compare", "good", "other", "--force", "--format", "json", "--github"]) == 0
    out, err = capfd.readouterr()
    assert {cell["n"] for cell in json.loads(out)["cells"]} <= set(range(1, 11))
    assert "::warning title=clipguard compare%3A not like for like::quantize" in err


def test_a_model_is_benched_like_the_base_into_a_new_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "good", BLIND, *CLEAN]) == 1
    assert "regression" in capfd.readouterr().out
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.name != "store")
    mine, other = (json.loads((path / "results.json").read_text()) for path in (folder, Path("blind")))
    assert mine["cells"] == other["cells"]
    assert run(["compare", "good", str(folder), *CLEAN]) == 1  # next time, without a run


def test_two_models_take_the_options_of_bench(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "tiny", BLIND, *FAST, *CLEAN, "--format", "json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["verdict"] == "regression"
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.name != "store")
    assert set(json.loads((folder / "results.json").read_text())["run"]["models"]) == {"tiny", BLIND}


@pytest.mark.parametrize("output", ["table", "json", "md"])
def test_outputs_hold_the_numbers(output: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "good", "blind", "--format", output]) == 1
    out, err = capfd.readouterr()
    assert err == ""
    for text in ("emoji-food", "pgd-2", "regression"):
        assert text in out
    if output == "json":
        found = json.loads(out)
        clean = found["cells"][0]
        base, candidate = (json.loads(Path(n, "results.json").read_text())["cells"][0] for n in ("good", "blind"))
        assert clean["base"] == base["accuracy"]
        assert clean["candidate"] == candidate["accuracy"]
        assert clean["gained"] - clean["lost"] == candidate["correct"] - base["correct"]
        assert found["rules"] == {"max_drop": 1.0, "alpha": 0.05, "metrics": ["clean", "robust", "average"]}
        assert found["models"]["base"]["sha256"] == found["models"]["candidate"]["sha256"]
    if output == "md":
        header, rule, first, *_ = out.splitlines()
        assert header.count("|") == rule.count("|") == first.count("|") == 12


def test_the_table_fits_a_terminal_of_80_columns(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["compare", "good", "good"]) == 0
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for whole in ("emoji-food", "pgd-2 1/255", "inconclusive", "1.000"):
        assert whole in out


def test_github_annotations_go_to_stderr_and_leave_json_clean(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    arguments = ["compare", "good", "blind", *CLEAN, "--format", "json"]
    assert run(arguments) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["verdict"] == "regression"
    (line,) = err.splitlines()
    assert line.startswith("::error title=clipguard compare%3A emoji-food clean::accuracy ")
    assert "%25 ->" in line
    assert run([*arguments, "--alpha", "0.0001"]) == 0
    assert capfd.readouterr().err.startswith("::warning ")
    assert run([*arguments, "--no-github"]) == 1
    assert capfd.readouterr().err == ""


def junit(arguments: list[str]) -> ET.Element:
    """The one test suite of a run, its structure checked against what windyroad's JUnit.xsd requires."""
    run(["compare", *arguments, "--junit", "reports/junit.xml"])
    root = ET.parse("reports/junit.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    needed = {"name", "timestamp", "hostname", "tests", "failures", "errors", "time", "package", "id"}
    assert needed <= set(suite.attrib) <= needed | {"skipped"}
    tags = [child.tag for child in suite]
    cases = suite.findall("testcase")
    assert tags == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
    assert all(set(case.attrib) == {"name", "classname", "time"} for case in cases)
    assert all(set(p.attrib) == {"name", "value"} for p in suite.iterfind("properties/property"))
    assert all(set(failure.attrib) == {"type", "message"} for failure in suite.iter("failure"))
    for count, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped"), ("errors", "error")):
        assert int(suite.attrib[count]) == len(list(suite.iter(tag)))
    return suite


def test_junit_has_a_test_for_each_cell() -> None:
    failed = junit(["good", "blind"])
    assert [(c.get("classname"), c.get("name")) for c in failed.iter("testcase")] == [
        ("emoji-food", "clean"),
        ("emoji-food", "pgd-2 1/255"),
    ]
    assert failed.find("testcase/failure[@type='regression']") is not None
    undecided = junit(["good", "good"])
    assert undecided.attrib["skipped"] == undecided.attrib["tests"] == "2"
    assert junit(["good", "good", "--fail-on", "inconclusive"]).attrib["failures"] == "2"
