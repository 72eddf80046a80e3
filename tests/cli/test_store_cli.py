"""`clipguard store`, as a user types it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest

import clipguard
from clipguard.benchmark.stored import session as store_session
from clipguard.cli import run
from clipguard.store.store import COLUMNS, Store, distinct


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cells of many small segments in the default place; that of seed 0 is old."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store_session, "FLUSH_SECONDS", 0.0)
        patch.setattr(store_session, "MOST_SEGMENTS", 1000)
        measure(1)
        patch.setattr(store_session, "_now", lambda: "2026-01-02T03:04:05+00:00")
        measure(0)
    return tmp_path / "runs" / "store"


def measure(seed: int = 0) -> clipguard.benchmark.results.result.BenchResult:  # type: ignore[name-defined]
    options = {"attacks": ["pgd-2"], "eps": ["1,8"], "n_samples": 5, "seed": seed}
    return clipguard.bench(datasets=["emoji-food"], store="runs/store", **options)  # type: ignore[arg-type]


def computed(seed: int = 0) -> int:
    return int(measure(seed).run["costs"][0]["computed"])


def rows(store: Path) -> list[pd.DataFrame]:
    found = [distinct(cell.segments()) for cell in Store(store).cells()]
    return [frame.sort_values(["index", "eps"], ignore_index=True) for frame in found]


def segments(store: Path) -> list[Path]:
    return sorted(store.glob("cells/*/*.parquet"))


def test_ls(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "ls", "-f", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2
    for cell in found:
        assert (cell["models"], cell["datasets"], cell["attacks"]) == (["tiny"], ["emoji-food"], ["pgd-2"])
        assert cell["eps"] == [1, 8]
        assert cell["images"] == 5
        assert cell["bytes"] > 0
    assert run(["store", "ls"]) == 0
    printed = capsys.readouterr().out
    assert "emoji-food" in printed
    assert "2 cells" in printed


def test_verify(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "verify"]) == 0
    assert "damaged: nothing" in capsys.readouterr().out
    path = segments(store)[0]
    path.write_bytes(path.read_bytes()[:-3])
    assert run(["-q", "store", "verify", "-f", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["damaged"] == [f"{path.parent.name}/{path.name}"]
    assert run(["store", "verify"]) == 0
    next(store.glob("cells/*/_key.json")).write_text("{}")
    assert run(["store", "verify"]) == 1


def test_gc_merges_and_changes_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, number = rows(store), len(segments(store))
    assert number > 4
    old, new = store / "parts" / "old", store / "parts" / "new"
    for part in (old, new):
        part.write_bytes(b"half a segm")
    os.utime(old, (time.time() - 7200,) * 2)
    assert run(["store", "gc"]) == 0
    assert f"Merged away: {number} small files. Removed: 1 leftovers" in capsys.readouterr().out
    assert len(segments(store)) == 2
    assert new.exists()
    assert not old.exists()
    for one, other in zip(before, rows(store), strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert computed() == 0
    costs = [sum(entry["rows"] for entry in s.cost_log) for c in Store(store).cells() for s in c.segments()]
    assert costs == [len(frame) for frame in before]
    assert run(["store", "gc"]) == 0
    assert "Merged away: 0" in capsys.readouterr().out


def test_gc_removes_only_what_is_chosen_and_only_with_yes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {cell.key["seed"]: cell for cell in Store(store).cells()}
    first, second = keys[0].folder, keys[1].folder
    assert run(["store", "gc", "--older-than", "30d"]) == 0
    assert "Nothing was removed: add --yes" in capsys.readouterr().out
    assert list(first.glob("*.parquet"))
    assert run(["store", "gc", "--older-than", "30d", "--model", "other*", "--yes"]) == 0
    assert "Nothing is of that kind" in capsys.readouterr().out
    assert run(["store", "gc", "--older-than", "30d", "--model", "tin*", "--yes"]) == 0
    assert "Removed: " + first.name[:8] in capsys.readouterr().out
    assert not first.exists()
    assert len(list(second.glob("*.parquet"))) == 1
    assert (computed(0), computed(1)) == (15, 0)


def test_gc_removes_damaged_files(store: Path) -> None:
    segments(store)[0].write_bytes(b"")
    assert run(["-q", "store", "verify"]) == 1
    assert run(["store", "gc", "--damaged"]) == 0
    assert len(list((store / "damaged").iterdir())) == 1
    assert run(["store", "gc", "--damaged", "--yes"]) == 0
    assert not list((store / "damaged").iterdir())


@pytest.mark.parametrize("name", ["all.parquet", "all.csv"])
def test_export(name: str, store: Path) -> None:
    assert run(["store", "export", "--out", name]) == 0
    found = pd.read_parquet(name) if name.endswith("parquet") else pd.read_csv(name)
    assert set(COLUMNS) < set(found.columns)
    assert len(found) == sum(map(len, rows(store)))
    assert set(found["key_seed"]) == {0, 1}
    assert set(found["key_norm"]) == {"linf"}
    assert run(["store", "export", "--out", name]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "--store", "nowhere"], "no store at nowhere"),
        (["verify", "--store", "."], "no store at ."),
        (["gc", "--older-than", "soon"], "30d, 12h"),
        (["export", "--out", "all.xlsx"], ".parquet or .csv"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
