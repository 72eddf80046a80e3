"""`clipguard bench --defense`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from clipguard.cli import run

FEW = ["-d", "emoji-food", "-n", "4", "--attack", "pgd-2+square(queries=3)"]
COLUMNS = ["none", "transfer", "adaptive", "black-box", "worst case"]


def bench(folder: Path, *words: str) -> dict[str, object]:
    eps = [] if "--eps" in words else ["--eps", "2,8"]
    assert run(["-q", "bench", *FEW, *eps, "--out", str(folder), *words]) == 0
    content: dict[str, object] = json.loads((folder / "results.json").read_text())
    return content


def test_all_columns_and_a_rerun_that_computes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--defense", "bit-depth(bits=3)", "--store", str(tmp_path / "store")]
    content = bench(tmp_path / "one", *how)
    cells = {(cell["attack"], cell["eps"]): cell["correct"] for cell in content["cells"]}
    assert list(dict.fromkeys(attack for attack, _ in cells)) == COLUMNS
    assert {cell["model"] for cell in content["cells"]} == {"tiny + bit-depth(bits=3)"}
    for eps in (2.0, 8.0):
        assert cells["worst case", eps] <= min(cells[column, eps] for column in COLUMNS[1:4])
    record = content["run"]["defense"]
    assert (record["random"], record["passes"], record["threats"]) == (False, [1, 0], COLUMNS[1:4])
    found = {f["id"]: f["verdict"] for entry in content["run"]["findings"] for f in entry["findings"]}
    assert found["weak-threat"] == "ok"
    assert {"defense-gap", "defense-labels", "defense-gate", "defense-gradient"} <= set(found)
    out = capsys.readouterr().out
    assert "worst case" in out
    assert "bit-depth takes up to 1 forward and 0 backward passes an image" in " ".join(out.split())
    again = bench(tmp_path / "two", *how)
    assert all(not cost["stages"] and not cost["computed"] for cost in again["run"]["costs"])
    for file in ("samples.parquet", "results.md", "results.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_random_defence_fares_alike_in_parts_and_at_once(tmp_path: Path) -> None:
    how = ["--eps", "8", "--defense", "random-resize", "--votes", "3", "--draws", "2", "--no-probes"]
    store = ["--store", str(tmp_path / "store")]
    for shard in ("1/2", "2/2"):
        assert run(["-q", "bench", *FEW, *how, *store, "--shard", shard]) == 0
    bench(tmp_path / "parts", *how, *store)
    bench(tmp_path / "whole", *how, "--no-store")
    parts, whole = (pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("parts", "whole"))
    pd.testing.assert_frame_equal(parts, whole)
    margins = whole[whole["attack"] == "none"]["margin"]
    assert ((margins * 3).round(4) % 1 == 0).all()  # shares of three votes


def test_the_weak_column_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bench(tmp_path / "out", "--defense", "bit-depth", "--threat", "transfer", "--no-store", "--no-probes")
    out = " ".join(capsys.readouterr().out.split())
    assert "WEAK: transfer alone;" in out
    assert "FAILURE weak-threat" in out
    assert {cell["attack"] for cell in content["cells"]} == {"none", "transfer"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--defense", "tcc"], "Unknown defence 'tcc'. Did you mean 'ttc'?"),
        (["--defense", "ttc(epsilon=3)"], "Defence 'ttc' has no option 'epsilon'."),
        (["--defense", "smoothing(sigma=0)"], "sigma must be above 0, not 0"),
        (["--defense", "ttc", "--votes", "4"], "--votes must be odd"),
        (["--draws", "3"], "--draws is for defended models; add --defense"),
        (["--defense", "ttc", "--threat", "transfr"], "--threat 'transfr' is unknown. Did you mean 'transfer'?"),
        (["--defense", "ttc", "--attack", "pgd-2,pgd-3"], "With a --defense, --attack is one attack"),
        (
            ["--defense", "ttc", "--threat", "adaptive", "--transfer-from", "tiny"],
            "--transfer-from is for the threat black-box; add it to --threat",
        ),
        (["--defense", "ttc", "--transfer-from", "tinny"], "Did you mean 'tiny'? For --transfer-from, use"),
        (["--defense", "ttc", "--attack", "square"], "uses no gradients, which adaptive attacks need"),
        (["--defense", "ttc", "--eps-mode", "nested"], "not attacked with --eps-mode nested"),
        (["--defense", "ttc", "--engine", "reference"], "not attacked with --engine reference"),
        (["--defense", "ttc", "--compile"], "not attacked with --compile; leave it out"),
        (["--defense", "ttc", "--plan", "--shard", "1/2"], "--plan is of a whole run"),
        (["--defense", "ttc+tte"], "ttc needs embeddings, and tte, which comes after it, gives none"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for word in FEW if "--attack" not in words or word not in ("--attack", FEW[-1])]
    assert run(["-q", "bench", *given, "--no-store", *words]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert message in line
    assert captured.out == ""


def test_an_image_is_attacked_through_the_defence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is broken here is what the adaptive column breaks, and what the judge says of it is shown."""
    how = ["-d", "emoji-food", "-n", "4", "--eps", "8", "--attack", "pgd-2", "--defense", "random-resize"]
    how += ["--votes", "3", "--draws", "2"]
    assert run(["-q", "attack", *how, "--out", str(tmp_path / "images"), "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["run"]["defense"]["threats"] == ["adaptive"]
    assert (
        run(
            ["-q", "bench", *how, "--threat", "adaptive", "--no-probes", "--no-store", "--out", str(tmp_path / "table")]
        )
        == 0
    )
    ours, theirs = (pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("images", "table"))
    theirs = theirs[theirs["attack"] == "adaptive"].reset_index(drop=True)
    columns = ["model", "index", "robust", "broken_by", "adv_pred", "margin"]
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])
    assert set(ours["model"]) == {"tiny + random-resize"}


def test_a_gate_is_shown_more_images_than_are_attacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipguard.sanity.defenses.STEPS", 2)
    how = [
        "-d",
        "emoji-food",
        "-n",
        "20",
        "--eps",
        "1",
        "--attack",
        "pgd-1",
        "--defense",
        "csr",
        "--threat",
        "transfer",
    ]
    assert run(["-q", "bench", *how, "--out", str(tmp_path / "out"), "--no-store"]) == 0
    run_record = json.loads((tmp_path / "out" / "results.json").read_text())["run"]
    (gate,) = [f for entry in run_record["findings"] for f in entry["findings"] if f["id"] == "defense-gate"]
    assert gate["numbers"]["n"] == 20
    assert f"flags {gate['numbers']['flagged']} of 20 clean images" in " ".join(capsys.readouterr().out.split())
