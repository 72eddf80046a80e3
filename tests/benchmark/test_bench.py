"""Real runs of the embedded model on the embedded data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import clipguard
from clipguard.adversarial.generate import attack_images
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results.folder import ResultFolder
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.table import columns, rows, to_markdown
from clipguard.core.errors import AttackError, OutputError
from clipguard.core.records.samples import SAMPLE_COLUMNS
from clipguard.statistics.intervals import wilson_interval


def run(**options: object) -> BenchResult:
    options = {"n_samples": 12, "eps": ["1,8"], "attacks": ["pgd-10"], "datasets": ["emoji-food"]} | options
    return clipguard.bench(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return run(datasets=["emoji-food", "emoji-travel"], attacks=["pgd-10", "apgd-ce(iterations=10)"])


def test_there_is_a_cell_for_clean_and_for_every_attack_and_eps(result: BenchResult) -> None:
    found = [(c.dataset, c.attack, c.eps) for c in result.cells]
    per_set = [("none", 0), ("pgd-10", 1), ("pgd-10", 8), ("apgd-ce(iterations=10)", 1), ("apgd-ce(iterations=10)", 8)]
    assert found == [(d, a, e) for d in ("emoji-food", "emoji-travel") for a, e in per_set]


def test_cells_summarise_their_rows(result: BenchResult) -> None:
    for cell in result.cells:
        s = result.samples
        own = s[(s.dataset == cell.dataset) & (s.attack == cell.attack) & (s.eps == cell.eps)]
        assert cell.n == len(own) == 12
        assert cell.accuracy == own.robust.mean()
        assert (cell.ci_low, cell.ci_high) == wilson_interval(int(own.robust.sum()), 12)
        assert cell.broken_by == own.broken_by.dropna().value_counts().to_dict()
        assert sum(cell.broken_by.values()) == 12 - cell.correct


def test_rows_are_consistent(result: BenchResult) -> None:
    s = result.samples
    assert dict(s.dtypes.astype(str)) == SAMPLE_COLUMNS
    assert (s.robust == (s.adv_pred == s.label)).all()
    assert (s.robust == s.broken_by.isna()).all()
    assert (s.distance <= s.eps + 1e-3).all()  # both in units of 1/255
    attacked = s[s.attack != "none"]
    assert attacked[attacked.clean_pred != attacked.label].broken_by.eq("clean").all()
    assert attacked[attacked.robust].margin.gt(0).all()
    broken = attacked[~attacked.robust]
    assert broken.margin.le(0).all()


def test_the_attack_has_teeth_and_accuracy_falls_with_eps(result: BenchResult) -> None:
    average = next(r for r in rows(result.cells) if r.dataset == "average").values
    clean, one, eight = average["none", 0][0], average["pgd-10", 1][0], average["pgd-10", 8][0]
    assert clean >= one >= eight
    assert eight <= clean - 0.3


@pytest.mark.parametrize("attack", ["pgd-10", "apgd-ce(iterations=20)+apgd-t(iterations=20,targets=3)"])
def test_a_rerun_and_another_batch_size_give_the_same_rows(attack: str) -> None:
    options = {"attacks": [attack], "n_samples": 5, "eps": ["8"], "probes": False}
    first = run(**options)
    pd.testing.assert_frame_equal(first.samples, run(**options).samples)
    other = run(**options, batch_size=3).samples
    # Kernels may round differently for another batch shape; outcomes may not change.
    loose = ["distance", "margin"]
    pd.testing.assert_frame_equal(first.samples.drop(columns=loose), other.drop(columns=loose))


def test_the_subset_is_the_same_for_every_model_and_larger_with_n() -> None:
    few, more = (run(n_samples=n, attacks=["none"]).run["datasets"]["emoji-food"]["indices"] for n in (9, 18))
    assert len(few) == 9
    assert len(more) == 18
    assert few == run(n_samples=9, attacks=["none"]).run["datasets"]["emoji-food"]["indices"]


@pytest.mark.parametrize(("resolution", "height", "width"), [("native", 30, 70), ("model", 48, 48)])
def test_the_resolution_is_that_of_the_pixels_that_are_perturbed(
    resolution: str, height: int, width: int, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 70, 3), np.uint8)
    for number, (name, pixels) in enumerate(zip(("cat", "dog"), noise, strict=True)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    plan = make_plan("tiny", str(tmp_path), eps="8", attacks="fgsm", resolution=resolution, device="cpu")
    result = attack_images(plan)
    assert [image.clean.shape for image in result.images] == [(3, height, width)] * 2
    assert [image.x_adv.shape for image in result.images] == [(3, height, width)] * 2
    if resolution == "native":
        for image, pixels in zip(result.images, noise, strict=True):
            assert torch.equal((255 * image.clean).round().byte().permute(1, 2, 0), torch.from_numpy(pixels))
    rows = clipguard.bench(datasets=[str(tmp_path)], eps="8", attacks="fgsm", resolution=resolution, device="cpu")
    assert rows.samples["margin"].tolist()[2:] == [image.row["margin"] for image in result.images]


def test_l2_and_eps_zero() -> None:
    result = run(norm="l2", eps=["0,1"], n_samples=6)
    clean, zero, one = result.cells
    assert (zero.eps, zero.accuracy) == (0, clean.accuracy)
    assert one.accuracy <= zero.accuracy
    assert result.samples.distance.max() <= 1 + 1e-5


def test_the_reference_engine_agrees_on_the_same_cells() -> None:
    options = {"attacks": ["apgd-ce(iterations=20)"], "eps": ["8"], "n_samples": 10}
    ours, theirs = run(**options), run(**options, engine="reference")
    assert ours.cells[0] == theirs.cells[0]
    assert abs(ours.cells[1].correct - theirs.cells[1].correct) <= 1


def test_provenance_is_complete(result: BenchResult) -> None:
    run = result.run
    assert run["complete"] is True
    assert set(run["versions"]) >= {"clipguard", "torch", "open_clip_torch", "timm", "python"}
    assert len(run["models"]["tiny"]["sha256"]) == 64
    data = run["datasets"]["emoji-food"]
    assert len(data["fingerprint"]) == 64
    assert len(data["indices"]) == data["n"] == 12
    assert all("{}" in t for t in data["templates"])
    stages = run["attacks"]["apgd-ce(iterations=10)"]["stages"]
    assert stages == [{"attack": "apgd-ce", "iterations": 10, "restarts": 1}]
    cost = run["costs"][0]["stages"]
    assert cost["clean"]["forward"] == 12
    assert cost["pgd-10"]["backward"] > 0


def test_files_are_what_the_documentation_says(result: BenchResult, tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "new" / "run")
    folder.write(result, to_markdown(result))
    written = json.loads((folder.path / "results.json").read_text())
    assert written["schema"] == 1
    assert {"model", "dataset", "norm", "eps", "attack", "n", "accuracy", "ci_low", "ci_high"} <= set(
        written["cells"][0]
    )
    assert len(pd.read_csv(folder.path / "results.csv")) == len(result.cells)
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder.path / "samples.parquet").astype(SAMPLE_COLUMNS), result.samples, check_dtype=False
    )
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "results.csv",
        "results.json",
        "results.md",
        "samples.parquet",
    ]
    with pytest.raises(OutputError, match="overwritten"):
        ResultFolder(folder.path)


def test_the_markdown_table_has_every_cell(result: BenchResult) -> None:
    lines = to_markdown(result).splitlines()
    header = [c.strip() for c in lines[0].strip("|").split("|")]
    assert header[:4] == ["model", "data set", "n", "clean"]
    assert len(header) == 3 + len(columns(result.cells))
    first = [c.strip() for c in lines[2].strip("|").split("|")]
    assert first[:3] == ["tiny", "emoji-food", "12"]
    assert first[3].startswith(f"{100 * result.cells[0].accuracy:.1f} (")


def test_recipe_files_and_their_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text('stages = ["pgd-2", "fgsm"]')
    names = [str(tmp_path / folder / "mine.toml") for folder in ("a", "b")]
    found = clipguard.bench(datasets=["emoji-food"], eps=["4"], attacks=names[:1], n_samples=4)
    assert {c.attack for c in found.cells} == {"none", "mine"}
    assert [s["attack"] for s in found.run["attacks"]["mine"]["stages"]] == ["pgd-2", "fgsm"]
    with pytest.raises(AttackError, match="same name"):
        clipguard.bench(datasets=["emoji-food"], eps=["4"], attacks=names, n_samples=4)


def test_nested_eps_is_labelled_everywhere() -> None:
    found = clipguard.bench(datasets=["emoji-food"], eps=["1,8"], attacks=["pgd-2"], n_samples=4, eps_mode="nested")
    label = "pgd-2 [nested]"
    assert {c.attack for c in found.cells} == set(found.samples["attack"]) == {"none", label}
    assert list(found.run["attacks"]) == [label]
    assert label in to_markdown(found)
    assert label in found.to_frame().to_csv()


def test_how_many_images_are_left_out_is_said_once_for_each_set(caplog: pytest.LogCaptureFixture) -> None:
    size = len(clipguard.load_dataset("emoji-food"))
    with caplog.at_level("INFO", logger="clipguard"):
        run(n_samples=5, attacks=["none", "pgd-2"], eps=["1"])
    said = [record.getMessage() for record in caplog.records if "n_samples" in record.getMessage()]
    assert said == [f"emoji-food: 5 of {size} images, `n_samples=all` for the rest"]
