"""`clipguard certify`: the run, its files, the store, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import clipguard
from clipguard.certification.result import COLUMNS, CertifyResult
from clipguard.certification.run import CertifyRun
from clipguard.certification.settings import SETTINGS, make_certification
from clipguard.certification.smoothing import SmoothingTest
from clipguard.cli import run
from clipguard.cli.options import read_config
from clipguard.core.errors import ClipguardError
from clipguard.store.maintenance import check, open_store, summaries, table, tidy
from clipguard.store.store import Store

FEW = ["-d", "emoji-food", "-n", "3", "--samples", "40", "--selection-samples", "10", "--sigma", "0.1"]
OPTIONS: dict[str, Any] = {"sigma": 0.1, "samples": 40, "selection_samples": 10}


class Brightness(nn.Module):
    """Two classes: whether the mean is above one half. The plane is at an l2 distance of sqrt(n) |mean - 1/2|."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1) - 0.5
        return self.scale * torch.stack([-mean, mean], dim=1)


def grey(levels: list[int]) -> tuple[Tensor, list[int]]:
    """Images (N, 3, 4, 4) of one grey each, and whether it is bright."""
    pixels = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return pixels / 255, [int(level > 127) for level in levels]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from the command line, beside its store."""
    folder = tmp_path_factory.mktemp("certified")
    assert run(["-q", "certify", *FEW, "--store", str(folder / "store"), "--out", str(folder / "out")]) == 0
    return folder


def test_the_files_of_a_run_belong_together(files: Path) -> None:
    out = files / "out"
    assert {path.name for path in out.iterdir()} == {
        "certify.json",
        "certify.csv",
        "certify.md",
        "samples.parquet",
        "certified-emoji-food.png",
    }
    content = json.loads((out / "certify.json").read_text())
    rows = pd.read_parquet(out / "samples.parquet")
    assert rows.dtypes.astype(str).to_dict() == COLUMNS
    run_record, (cell,) = content["run"], content["cells"]
    assert (run_record["complete"], run_record["plan"]["sigma"], run_record["seed"]) == (True, [0.1], 0)
    assert {"versions", "machine", "models", "datasets", "costs"} <= set(run_record)
    assert cell["n"] == len(rows) == 3
    assert cell["abstained"] == rows["abstained"].sum()
    assert cell["base"]["correct"] == (rows["base_pred"] == rows["label"]).sum()
    assert cell["smoothed"]["correct"] == (rows["smoothed_pred"] == rows["label"]).sum()
    assert [share["radius"] for share in cell["certified"]] == [0, 0.25, 0.5, 1]
    assert cell["certified"][0]["correct"] == rows["certified"].sum()
    test = SmoothingTest(0.1, 40, 10, 0.001)
    for row in rows.to_dict("records"):
        assert row["radius"] == test.radius(row["hits"])
        assert row["samples"] == test.samples_used(row["hits"])
        assert row["certified"] == (test.certifies(row["hits"]) and row["smoothed_pred"] == row["label"])
    assert run_record["costs"][0]["stages"]["clean"]["forward"] == 3
    assert (out / "certified-emoji-food.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(out / "certify.csv")) == 4


def test_a_second_run_computes_nothing_and_says_the_same(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["-q", "certify", *FEW, "--store", str(files / "store"), "--out", str(files / "again"), "-f", "json"]) == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert again["cells"] == json.loads((files / "out" / "certify.json").read_text())["cells"]
    assert (again["run"]["costs"][0]["reused"], again["run"]["costs"][0]["stages"]) == (3, {})
    assert (files / "again" / "samples.parquet").read_bytes() == (files / "out" / "samples.parquet").read_bytes()


def test_the_store_lists_verifies_exports_and_tidies_certificates(files: Path) -> None:
    store = open_store(files / "store")
    (summary,) = summaries(store)
    assert summary.attacks == ["certify(sigma=0.1,samples=40,selection_samples=10,alpha=0.001)"]
    assert (summary.images, summary.norm, summary.eps) == (3, "l2", [])
    rows = table(store)
    key = {"version": 1, "sigma": 0.1, "samples": 40, "selection": 10, "alpha": 0.001}
    assert json.loads(rows["key_certify"].iloc[0]) == key
    assert rows["broken_by"].dropna().isin(["abstained", "wrong"]).all()
    assert check(store)["damaged"] == []
    assert tidy(store) == (0, 0)


def test_the_record_of_a_run_is_a_config_file(files: Path) -> None:
    values = read_config(files / "out" / "certify.json", SETTINGS)
    plan, smoothing = make_certification(values)
    assert (plan.models, plan.datasets, plan.n_samples) == (("tiny",), ("emoji-food",), 3)
    assert (smoothing.sigma, smoothing.samples, smoothing.selection_samples) == ((0.1,), 40, 10)


class StoppedError(Exception):
    """In the middle of a run."""


class StopAfter:
    """Progress that ends a run after some images."""

    def __init__(self, images: int) -> None:
        self.left = images
        self.counting = False

    def start(self, what: str, total: int) -> None:
        del total
        self.counting = "sigma" in what

    def advance(self, note: str = "") -> None:
        del note
        self.left -= self.counting
        if self.left == 0:
            raise StoppedError


def test_a_run_that_was_stopped_goes_on_and_finds_the_same(tmp_path: Path) -> None:
    plan, smoothing = make_certification({"datasets": "emoji-food", "n_samples": 6, **OPTIONS})
    store = Store(tmp_path / "store")
    stopped = CertifyRun(plan, smoothing, StopAfter(2), store)
    with pytest.raises(StoppedError):
        stopped.execute()
    assert stopped.result is not None
    assert not stopped.result.cells
    result = CertifyRun(plan, smoothing, store=store).execute()
    assert (result.run["costs"][0]["reused"], result.run["costs"][0]["computed"]) == (2, 4)
    whole = CertifyRun(plan, smoothing).execute()
    assert result.samples.equals(whole.samples)
    assert result.cells == whole.cells
    more = CertifyRun(
        make_certification({"datasets": "emoji-food", **OPTIONS, "n_samples": 7})[0], smoothing, store=store
    )
    assert more.execute().run["costs"][0]["computed"] < 7
    other = make_certification({"datasets": "emoji-food", "n_samples": 6, **OPTIONS, "confidence": 0.99})
    assert CertifyRun(*other, store=store).execute().run["costs"][0]["reused"] == 0


def test_an_interrupted_folder_is_gone_on_with_and_a_finished_one_is_not(tmp_path: Path) -> None:
    line = ["-q", "certify", *FEW, "-n", "2", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert run(line) == 0
    assert run(line) == 2
    file = tmp_path / "out" / "certify.json"
    content = json.loads(file.read_text())
    content["run"]["complete"] = False
    file.write_text(json.dumps(content))
    assert run([*line, "--seed", "1"]) == 2
    assert run(line) == 0
    assert json.loads(file.read_text())["run"]["complete"]


def test_batches_do_not_matter_to_a_model() -> None:
    known = clipguard.certify("tiny", "emoji-food", n_samples=4, **OPTIONS)
    for batch_size in (7, 50):
        again = clipguard.certify("tiny", "emoji-food", n_samples=4, batch_size=batch_size, **OPTIONS)
        assert again.samples.equals(known.samples)
    assert isinstance(known, CertifyResult)
    assert "tiny on emoji-food: sigma 0.1, n 4" in repr(known)


def test_a_module_with_a_known_distance() -> None:
    data = grey([20, 100, 126, 127, 129, 200])
    result = clipguard.certify(Brightness().eval(), data, sigma=[0.25, 0.5], samples=2000, radius=[0, 0.5, 1.0, 9])
    rows = result.samples
    exact = 48**0.5 * (torch.tensor([20, 100, 126, 127, 129, 200]) / 255 - 0.5).abs()
    for sigma in (0.25, 0.5):
        of_sigma = rows[rows["sigma"] == sigma]
        assert (of_sigma["radius"].to_numpy() <= exact.numpy() + 1e-6).all()
    assert rows.loc[rows["index"] == 3, "abstained"].all()  # 127 / 255 is 0.014 from the plane
    assert rows.loc[rows["index"].isin([0, 1, 5]), "certified"].all()
    first, second = result.cells
    assert (first.sigma, second.sigma, first.largest_radius < second.largest_radius) == (0.25, 0.5, True)
    counts = [share.correct for share in second.certified]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert result.run["in_memory"] == ["Brightness", "in-memory"]


@pytest.mark.parametrize("output", ["table", "csv", "md"])
def test_what_stdout_gets(output: str, files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = ["-q", "certify", *FEW, "--store", str(files / "store"), "--out", str(tmp_path / "out"), "-f", output]
    assert run(line) == 0
    out = capsys.readouterr().out
    said = {
        "table": "Largest radius that so many copies can certify: 0.1 (sigma 0.1)",
        "csv": "model,dataset,sigma,n,base_accuracy,smoothed_accuracy,abstained,average_radius,correct,",
        "md": "| model | data set | sigma | n | clean | noisy | abstains | r 0 | r 0.25 | r 0.5 | r 1 |",
    }
    assert said[output] in out.replace("\n", " ")
    if output == "table":
        assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sigma", "0"], "--sigma must be numbers above 0, not 0."),
        (["--sigma", "0.25,-1"], "--sigma must be numbers above 0, not -1."),
        (["--sigma", "loud"], "--sigma must be numbers above 0, not 'loud'."),
        (["--sigma", "nan"], "--sigma must be numbers above 0, not nan."),
        (["--sigma", "0.5,0.50"], "--sigma names 0.5 twice"),
        (["--samples", "9"], "--samples 9 can certify nothing at --confidence 0.999: even if all hit, at least 10"),
        (["--samples", "many"], "--samples must be a whole number of at least 1"),
        (["--selection-samples", "0"], "--selection-samples must be a whole number of at least 1"),
        (["--confidence", "1"], "--confidence must be a number above 0.5 and below 1, not 1"),
        (["--radius", "-0.1"], "--radius must be numbers of at least 0, not -0.1."),
        (["--radius", ""], "--radius must be numbers"),
        (["--eps", "4"], "No such option: --eps"),
        (["--attack", "pgd-10"], "No such option: --attack"),
        (["--format", "xml"], "--format 'xml' is unknown"),
        (["-d", "emoji-foo"], "emoji-foo"),
        (["-m", "tinny"], "tinny"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["-q", "certify", *options]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigma": 0}, "`sigma` must be numbers above 0, not 0"),
        ({"sigma": True}, "`sigma` must be numbers above 0, not True"),
        ({"samples": 5}, "at least 10 are needed"),
        ({"attacks": "pgd-10"}, "'attacks' is no setting"),
        ({"models": Brightness().eval(), "store": "s"}, "`store` is for checkpoints"),
    ],
)
def test_what_python_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipguardError, match=message):
        clipguard.certify(**given)
