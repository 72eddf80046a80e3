"""`clipguard plan` and `clipguard bench --plan`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipguard.cli import run
from clipguard.cli.console.plan_table import duration

FEW = ["-d", "emoji-food", "-n", "6", "--eps", "4", "--attack", "pgd-2", "--pilot", "4"]


@pytest.mark.parametrize("command", [["plan"], ["bench", "--plan"]])
def test_a_plan_as_json(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "store")]
    assert run([*command, *FEW, *store, "--format", "json", "--price", "2.5", "--workers", "3"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["cells"] == 2
    assert content["images"] == 6
    assert content["workers"] == 3
    assert content["passes"]["least"] <= content["passes"]["expected"] <= content["passes"]["most"]
    assert content["cost"]["most"] > 0
    assert content["results"] == {"asked": 12, "stored": 2 * content["pilot"]["images"]}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]  # no result


def test_a_plan_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "plan", *FEW, "--no-store", "--price", "2.5"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 cells, 6 images; the store has 0 of 12 image results." in out
    for part in ("emoji-food pgd-2 0 of 12", "Forward passes, in images:", "Time with 1 worker", "Cost at 2.5", "GiB"):
        assert part in out


def test_bounds_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "plan", *FEW, "--no-store", "--pilot", "0", "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["passes"]["expected"] is None
    assert content["pilot"]["images"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--price", "-1"], "--price must be a number of at least 0"),
        (["plan", "--price", "x"], "--price must be"),
        (["plan", "--pilot", "-1"], "--pilot must be"),
        (["plan", "--out", "x"], "No such option"),
        (["plan", "--engine", "reference"], "--engine reference cannot be planned"),
        (["plan", "--ray", "auto"], "name --workers"),
        (["plan", "--attack", "pgd-two"], "pgd-two"),
        (["plan", "--eps", "999"], "--eps"),
        (["plan", "-d", "no-such-set"], "no-such-set"),
        (["plan", "-m", "no-such:thing"], "no-such"),
        (["bench", "--plan", "--shard", "1/2"], "leave out --shard"),
        (["bench", "--plan", "--out", "x"], "leave out --out"),
        (["bench", "--plan", "--name", "x"], "leave out --name"),
        (["bench", "--plan", "--format", "csv"], "leave out --format csv"),
        (["bench", "--price", "1"], "add --plan"),
        (["bench", "--pilot", "1"], "add --plan"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.44, 35, 600, 10_000, 400_000)] == ["0.4 s", "35 s", "10 min", "2.8 h", "4.6 days"]
