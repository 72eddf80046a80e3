"""The store: nothing is computed twice, nothing is reused that should not be, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import killed_runs
import pandas as pd
import pytest
from torch import nn

import clipguard
from clipguard.attacks.engine.passes.batch_invariance import find_fill
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.folder import ResultFolder
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import to_markdown
from clipguard.benchmark.runner import run_plan
from clipguard.benchmark.stored import session as store_session
from clipguard.cli import run
from clipguard.core.eps import read_eps
from clipguard.core.errors import OutputError, ResultError
from clipguard.data import load_dataset
from clipguard.models import load_model
from clipguard.models.classifier import ZeroShotClassifier
from clipguard.store.store import COLUMNS, Store, distinct

FAST = {"datasets": ["emoji-food"], "attacks": ["apgd-ce(iterations=8)"], "eps": ["1,4"], "n_samples": 12} | {
    "device": "cpu"  # bytes are compared, and CUDA rounds differently in other batches
}
OUTCOMES = ["dataset", "index", "eps", "attack", "clean_pred", "robust"]


@pytest.fixture(autouse=True)
def segments_of_every_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_session, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(store_session, "MOST_SEGMENTS", 1000)


@pytest.fixture(scope="module")
def fresh() -> BenchResult:
    return clipguard.bench(**FAST)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("filled") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_session, "FLUSH_SECONDS", 0.0)
        patch.setattr(store_session, "MOST_SEGMENTS", 1000)  # not merged
        measure(store)
    return store


def measure(store: Path | None, **options: Any) -> BenchResult:
    return clipguard.bench(store=store, **(FAST | options))


def counts(result: BenchResult) -> tuple[int, int]:
    costs = result.run["costs"]
    return sum(c["reused"] for c in costs), sum(c["computed"] for c in costs)


def passes(result: BenchResult) -> int:
    """As the run says; `test_every_pass_is_in_the_costs` sees to it that this is what the model did."""
    return sum(s["forward"] for c in result.run["costs"] for s in c["stages"].values())


def measure_from_store(store: Path, **options: Any) -> BenchResult:
    """`measure` where everything is stored: fails if the model is given an image, or the run says so."""
    with counted() as made:
        result = measure(store, **options)
    assert made == []
    assert passes(result) == 0
    return result


@contextmanager
def counted() -> Iterator[list[int]]:
    """A list that gets the number of images of every forward pass of a classifier, but for the black ones below."""
    made: list[int] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        if isinstance(module, ZeroShotClassifier):
            made.append(int((inputs[0] != 0).flatten(1).any(dim=1).sum()))

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield made
    finally:
        handle.remove()


def files(result: BenchResult, folder: Path) -> dict[str, bytes]:
    """The bytes of all tables, and the cells of results.json."""
    ResultFolder(folder).write(result, to_markdown(result))
    return tables(folder)


@cache
def promised() -> bool:
    """Whether bytes do not depend on the batch here, by the self-test; where they do, outcomes are compared."""
    data = load_dataset("emoji-food")
    return find_fill(load_model("tiny").classifier(data.class_names, data.templates), (3, 48, 48), 64).holds


def samples(result: BenchResult) -> pd.DataFrame:
    return result.samples if promised() else result.samples[OUTCOMES]


def tables(folder: Path) -> dict[str, bytes]:
    if not promised():
        return {"outcomes": pd.read_parquet(folder / "samples.parquet")[OUTCOMES].to_csv().encode()}
    found = {name: (folder / name).read_bytes() for name in ("samples.parquet", "results.csv", "results.md")}
    cells = json.loads((folder / "results.json").read_text())["cells"]
    return found | {"cells": json.dumps(cells).encode()}


def segments(store: Path) -> list[Path]:
    return sorted(store.glob("cells/*/*.parquet"))


# Reuse ----------------------------------------------------------------------------------------------------------


def test_a_rerun_computes_nothing_and_gives_the_same_bytes(fresh: BenchResult, filled: Path, tmp_path: Path) -> None:
    again = measure_from_store(filled)
    assert counts(again) == (12 * 3, 0)
    measure_from_store(filled, batch_size=5)
    assert again.run["findings"] == fresh.run["findings"]
    assert again.run["costs"][0]["stored"]["clean"]["forward"] == 12
    assert files(again, tmp_path / "again") == files(fresh, tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"eps": ["1,2,4"]}, None),
        ({"n_samples": 16}, 4 * 3),
        ({"datasets": ["emoji-food", "emoji-travel"]}, 12 * 3),
        ({"eps": ["1"]}, 0),
    ],
    ids=["a radius", "images", "a data set", "a radius less"],
)
def test_only_what_is_new_is_computed(change: dict[str, Any], new: int | None, filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    grown, whole = measure(store, **change), measure(None, **change)
    computed = counts(grown)[1]
    if new is None:  # a radius in the middle: images that are broken at 1 or not at 4 do not always need it
        assert 0 < computed <= 12
        assert passes(grown) < passes(whole) / 2
    else:
        assert computed == new
    assert files(grown, tmp_path / "grown") == files(whole, tmp_path / "whole")
    measure_from_store(store, **change)


# Sanity probes --------------------------------------------------------------------------------------------------


def probe_costs(result: BenchResult) -> dict[str, Any]:
    (cost,) = (c for c in result.run["costs"] if c["attack"] == "sanity probes")
    return dict(cost)


def test_every_pass_is_in_the_costs_those_of_the_probes_too() -> None:
    with counted() as made:
        result = measure(None)
    assert sum(made) == passes(result)
    stages = probe_costs(result)["stages"]["sanity probes"]
    assert (stages["forward"], stages["backward"]) == (13 * 8, 7 * 8)
    assert stages["seconds"] > 0


def test_probes_are_kept_in_the_store(filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    cost = probe_costs(measure(store))
    assert (cost["stages"], cost["stored"]["sanity probes"]["forward"]) == ({}, 13 * 8)
    (path,) = (store / "probes").glob("*.json")
    path.write_text(path.read_text().replace("warning", "failure").replace('"ok"', '"failure"'))
    whole = measure(store)  # a damaged file is set aside, and its probes are made again
    assert probe_costs(whole)["stages"]["sanity probes"]["forward"] == 13 * 8
    assert whole.run["findings"] == measure(filled).run["findings"]
    assert len(list((store / "damaged").iterdir())) == 1


@pytest.mark.parametrize("change", [{"eps": ["1,2"]}, {"seed": 1}, {"logit_scale": 10.0}, {"n_samples": 6}])
def test_other_probes_are_made_again(change: dict[str, Any], filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    found = measure(store, **change)
    assert probe_costs(found)["stages"]
    assert found.run["findings"] == measure(None, **change).run["findings"]


def test_probes_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with counted() as made:
        result = clipguard.bench(["tiny"], ["emoji-food"], ["4"], ["apgd-ce(iterations=2)"], n_samples=16, probes=False)
    assert sum(made) == passes(result)
    assert {c["attack"] for c in result.run["costs"]} == {"apgd-ce(iterations=2)"}
    found = {f["id"]: f for f in result.run["findings"][0]["findings"]}
    assert found["gradients"]["verdict"] == "not checked"
    assert found["above-chance"]["verdict"] == "ok"
    bench = ["-q", "bench", "-d", "emoji-food", "--attack", "pgd-2", "-n", "4", "--no-store", "--no-probes"]
    assert run([*bench, "--out", str(tmp_path / "out")]) == 0
    assert "the probes were not made (--no-probes)" in " ".join(capsys.readouterr().out.split())


def test_probes_go_with_their_cells(filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    (path,) = (store / "probes").glob("*.json")
    path.write_text("{")
    assert run(["store", "verify", "--store", str(store)]) == 1
    assert not path.exists()
    measure(store)
    assert run(["store", "verify", "--store", str(store)]) == 0
    assert run(["store", "gc", "--store", str(store), "--model", "tiny", "--yes"]) == 0
    assert list((store / "probes").iterdir()) == []


@pytest.mark.parametrize("mode", ["ascending", "independent", "nested"])
def test_radii_one_after_the_other_are_as_all_at_once(mode: str, tmp_path: Path) -> None:
    few = {"attacks": ["pgd-2"], "n_samples": 5, "eps_mode": mode, "probes": False}
    lists = ("4", "0,8", "1,2,3,4")
    for eps in lists:
        found = measure(tmp_path / "store", **few, eps=[eps])
        whole = measure(None, **few, eps=[eps])
        pd.testing.assert_frame_equal(samples(found), samples(whole))
    if mode == "nested":  # what is found at a radius depends on the others there
        assert len(list((tmp_path / "store" / "cells").iterdir())) == len(lists)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"attacks": ["apgd-ce(iterations=9)"]},
        {"quantize": True},
        {"norm": "l2", "eps": ["0.1,0.4"]},
        {"templates": "a drawing of a {}."},
        {"resolution": "native"},
        {"logit_scale": 10.0},
        {"precision": "bfloat16"},
        {"models": ["tiny#normalization=0,0,0/0.5,0.5,0.5"]},
        {"resize": "crop256"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_is_reused_for_another_run(change: dict[str, Any], filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    assert counts(measure(store, probes=False, **({"n_samples": 2} | change)))[0] == 0
    assert len(list((store / "cells").iterdir())) == 2


def test_names_do_not_matter_but_parameters_do(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('stages = ["apgd-ce(iterations=8)"]')
    renamed = measure_from_store(filled, attacks=[str(tmp_path / "mine.toml")])
    assert set(renamed.samples["attack"]) == {"none", "mine"}


def test_other_weights_of_the_same_name_are_never_reused(tmp_path: Path) -> None:
    folder, store = tmp_path / "model", tmp_path / "store"
    assert run(["-q", "convert", "tiny", "--out", str(folder)]) == 0
    name = {"models": [f"local-dir:{folder}"]}
    first = measure(store, **name)
    measure_from_store(store, **name)
    weights = folder / "open_clip_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    largest = max((n for n in tensors if n.startswith("visual.")), key=lambda n: tensors[n].numel())
    tensors[largest] = tensors[largest] * 1.2
    save_file(tensors, weights, {"format": "pt"})
    second = measure(store, **name)
    assert counts(second) == (0, 12 * 3)
    assert not first.samples["margin"].equals(second.samples["margin"])


def test_the_same_weights_in_another_file_are_reused(filled: Path, tmp_path: Path) -> None:
    assert run(["-q", "convert", "tiny", "--out", str(tmp_path / "copy")]) == 0
    measure_from_store(filled, models=[f"local-dir:{tmp_path / 'copy'}"])


def test_the_reference_is_reused_whole_or_not_at_all(tmp_path: Path) -> None:
    options = {"engine": "reference", "attacks": ["apgd-ce(iterations=4)"], "n_samples": 4}
    first = measure(tmp_path / "store", **options)
    again = measure_from_store(tmp_path / "store", **options)
    assert files(again, tmp_path / "again") == files(first, tmp_path / "first")
    segment = segments(tmp_path / "store")[0]
    segment.unlink()
    assert counts(measure(tmp_path / "store", **options))[0] == 0
    assert counts(measure(tmp_path / "store", **options, batch_size=2))[0] == 0


def test_many_segments_are_merged_when_a_run_is_done(filled: Path, tmp_path: Path, monkeypatch: Any) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    assert len(segments(store)) > 16
    monkeypatch.setattr(store_session, "MOST_SEGMENTS", 16)
    before = measure(store)
    assert len(segments(store)) == 1
    after = measure_from_store(store)
    pd.testing.assert_frame_equal(samples(before), samples(after))
    stages = [result.run["costs"][0]["stored"] for result in (before, after)]
    assert stages[0]["clean"]["forward"] == stages[1]["clean"]["forward"] == 12


# The disk -------------------------------------------------------------------------------------------------------


def damages(content: bytes) -> Iterator[bytes]:
    """Bits flipped, and the end cut off, all over a file."""
    for at in {
        *range(0, len(content), len(content) // 40),
        1,
        3,
        5,
        len(content) - 9,
        len(content) - 5,
        len(content) - 1,
    }:
        yield content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        yield content[:at]


def test_damage_anywhere_is_noticed_and_set_aside(filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    whole, *others = segments(store)
    for other in others[2:]:  # every damage has all of them read
        other.unlink()
    content = whole.read_bytes()
    (cell,) = Store(store).cells()
    number = len(cell.segments())
    assert number == 3
    place = store / "damaged" / f"{cell.name}-{whole.name}"
    for damaged in damages(content):
        whole.write_bytes(damaged)
        assert len(cell.segments()) == number - 1
        assert not whole.exists()
        assert place.read_bytes() == damaged
    whole.write_bytes(content)
    assert len(cell.segments()) == number


def test_what_was_damaged_or_deleted_is_computed_again(
    fresh: BenchResult, filled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    flipped, cut, emptied, gone = segments(store)[:4]
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    cut.write_bytes(cut.read_bytes()[:100])
    emptied.write_bytes(b"")
    gone.unlink()
    with caplog.at_level("WARNING", logger="clipguard"):
        mended = measure(store)
    pd.testing.assert_frame_equal(samples(mended), samples(fresh))
    assert counts(mended)[1] > 0
    assert len(list((store / "damaged").iterdir())) == 3
    assert all(path.name in caplog.text for path in (flipped, cut, emptied))
    measure_from_store(store)


def test_a_damaged_key_is_written_again(filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    (key,) = store.glob("cells/*/_key.json")
    whole = key.read_text()
    key.write_text(whole[:40])
    segments(store)[0].unlink()
    measure(store)
    assert key.read_text() == whole


def test_a_segment_of_another_cell_is_no_result_of_this_one(filled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(filled, tmp_path / "store")
    measure(store, seed=1)
    cells = list((store / "cells").iterdir())
    moved = next(cells[0].glob("*.parquet"))
    moved.rename(cells[1] / moved.name)
    Store(store).cell(json.loads((cells[1] / "_key.json").read_text())).segments()
    assert [p.name for p in (store / "damaged").iterdir()] == [f"{cells[1].name}-{moved.name}"]


def test_a_full_disk_loses_nothing_that_was_stored(
    fresh: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, synced, sync = tmp_path / "store", [0], os.fsync

    def full_after_ten(number: int) -> None:
        synced[0] += 1
        if synced[0] > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_ten)
        command = ["-q", "bench", "-d", "emoji-food", "-a", FAST["attacks"][0], "--eps", "1,4", "-n", "12"]
        assert run([*command, "--device", "cpu", "--store", str(store), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left on device" in error
    assert "run the same command again" in error
    assert not list((store / "parts").iterdir())
    stored = len(distinct([s for c in Store(store).cells() for s in c.segments()]))
    assert stored > 0
    resumed = measure(store)
    assert counts(resumed)[0] >= stored - 12
    pd.testing.assert_frame_equal(samples(resumed), samples(fresh))


def test_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ResultError, match="no store of clipguard"):
        measure(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_pandas_alone_reads_it(filled: Path, fresh: BenchResult) -> None:
    rows = pd.read_parquet(filled / "cells")
    assert list(rows.columns) == list(COLUMNS)
    own = rows[rows["attack"] == FAST["attacks"][0]].drop_duplicates(["index", "eps"]).set_index(["index", "eps"])
    attacked = fresh.samples[fresh.samples["attack"] != "none"]
    for row in attacked.itertuples():
        if row.clean_pred == row.label and (row.index, row.eps) in own.index:
            assert own.loc[(row.index, row.eps), "robust"] == row.robust


# Interruptions --------------------------------------------------------------------------------------------------


class StopError(Exception):
    """Ctrl-C, at a chosen image."""


class StopsAfter:
    def __init__(self, images: int) -> None:
        self.left = images

    def start(self, what: str, total: int) -> None:  # noqa: ARG002
        self.attacking = "·" in what

    def advance(self, note: str = "") -> None:  # noqa: ARG002
        self.left -= self.attacking
        if self.attacking and self.left == 0:
            raise StopError


@pytest.mark.parametrize("images", [1, 3, 7, 11])
def test_an_interrupted_run_goes_on(images: int, fresh: BenchResult, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(store_session, "FLUSH_SECONDS", 1e9)  # only what is written on the way out
    eps = tuple(read_eps(["1,4"], "linf"))
    plan = BenchPlan(("tiny",), ("emoji-food",), eps, attacks=tuple(FAST["attacks"]), n_samples=12, device="cpu")
    with pytest.raises(StopError):
        run_plan(plan, progress=StopsAfter(images), store=Store(tmp_path / "store"))
    monkeypatch.setattr(store_session, "FLUSH_SECONDS", 0.0)
    resumed = measure(tmp_path / "store")
    assert counts(resumed)[0] >= images
    assert files(resumed, tmp_path / "resumed") == files(fresh, tmp_path / "fresh")


def command(folder: Path, n: int) -> list[str]:
    line = ["-q", "bench", "-d", "emoji-food", "-a", "apgd-ce(iterations=12)", "--eps", "1,4", "-n", str(n)]
    return [*line, "--device", "cpu", "--store", str(folder / "store"), "--out", str(folder / "out")]


@pytest.mark.parametrize(("kills", "n"), [(3, 12), pytest.param(20, 60, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_bytes_are_the_same(kills: int, n: int, tmp_path: Path) -> None:
    assert killed_runs.killed(command(tmp_path / "whole", n), tmp_path / "whole", 0) == [0]
    found = killed_runs.killed(command(tmp_path / "killed", n), tmp_path / "killed", kills)
    assert found == [-signal.SIGKILL] * kills + [0]
    assert tables(tmp_path / "killed" / "out") == tables(tmp_path / "whole" / "out")
    assert json.loads((tmp_path / "killed" / "out" / "results.json").read_text())["run"]["complete"]


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    assert killed_runs.both(command(tmp_path, 12), tmp_path / "streams") == [0, 0]
    assert tables(tmp_path / "out") == tables(tmp_path / "out2")
    measure_from_store(tmp_path / "store", attacks=["apgd-ce(iterations=12)"])
    assert not (tmp_path / "store" / "damaged").exists()


# Folders --------------------------------------------------------------------------------------------------------


def test_an_interrupted_folder_is_continued_and_nothing_else_is_replaced(fresh: BenchResult, tmp_path: Path) -> None:
    plan = BenchPlan.from_dict(fresh.run["plan"], ["tiny"])
    folder = tmp_path / "run"
    ResultFolder(folder, plan=plan).write(BenchResult({**fresh.run, "complete": False}, fresh.cells), "part\n")
    with pytest.raises(OutputError, match="exists already"):
        ResultFolder(folder)
    with pytest.raises(OutputError, match="exists already"):
        ResultFolder(folder, plan=BenchPlan.from_dict({**fresh.run["plan"], "seed": 1}, ["tiny"]))
    ResultFolder(folder, plan=plan).write(fresh, to_markdown(fresh))
    with pytest.raises(OutputError, match="exists already"):  # it is complete now
        ResultFolder(folder, plan=plan)


def test_the_command_says_what_it_reuses(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["bench", "-d", "emoji-food", "-a", "pgd-2", "--eps", "8", "-n", "4"]
    assert run(command) == 0
    assert "0 of 8 image results from runs/store" in " ".join(capsys.readouterr().err.split())
    assert run(command) == 0
    assert "8 of 8 image results from runs/store" in " ".join(capsys.readouterr().err.split())
    assert run([*command, "--no-store"]) == 0
    assert "image results" not in capsys.readouterr().err


def test_a_store_that_cannot_be_written_is_refused_before_the_attack(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written .*name another folder"):
        clipguard.bench(n_samples=2, attacks="pgd-2", datasets="emoji-food", store=tmp_path / "file" / "store")
