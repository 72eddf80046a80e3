"""`clipguard attack`: real runs of the embedded model, and what is on disk afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import clipguard
from clipguard.cli import run
from clipguard.core.records.samples import SAMPLE_COLUMNS
from clipguard.models.preprocessing import to_native_pixels

FAST = ["attack", "-d", "emoji-food", "--attack", "pgd-5", "--eps", "16", "-n", "8"]
CLASSES = "red thing,blue thing,cat"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run."""
    folder = tmp_path_factory.mktemp("attack") / "out"
    assert run([*FAST, "--out", str(folder)]) == 0
    return folder


def classifier(dataset: str = "emoji-food", **options: str) -> torch.nn.Module:
    data = clipguard.load_dataset(dataset)
    return clipguard.load_model("tiny").classifier(data.class_names, data.templates, **options)  # type: ignore[arg-type]


def predict(model: torch.nn.Module, images: torch.Tensor) -> list[int]:
    with torch.no_grad():
        return model(images).argmax(dim=1).tolist()  # type: ignore[no-any-return]


def read_png(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return to_native_pixels(image)


def photo(path: Path, size: tuple[int, int] = (80, 60), shade: int = 200) -> Path:
    gradient = np.linspace(0, shade, size[0], dtype=np.uint8)[None, :, None].repeat(size[1], 0).repeat(3, 2)
    gradient[..., 0] = shade
    Image.fromarray(gradient).save(path)
    return path


def test_the_files_are_there_and_complete(found: Path) -> None:
    samples = pd.read_parquet(found / "samples.parquet")
    pictures = {f"{i}-{kind}.png" for i in samples["index"] for kind in ("clean", "adversarial")}
    assert {p.name for p in (found / "png").iterdir()} == pictures
    files = {"adversarial.safetensors", "grid.png", "png", "run.json", "samples.parquet"}
    assert {p.name for p in found.iterdir()} == files
    assert list(samples.columns) == [*SAMPLE_COLUMNS, "robust_as_png"]
    assert len(samples) == 8
    with Image.open(found / "grid.png") as grid:
        assert min(grid.size) > 400


def test_the_float_images_are_exact_inside_the_ball_and_do_what_the_rows_say(found: Path) -> None:
    tensors, samples = load_file(found / "adversarial.safetensors"), pd.read_parquet(found / "samples.parquet")
    x_adv, clean = tensors["x_adv"], tensors["clean"]
    assert x_adv.dtype == clean.dtype == torch.float32
    assert x_adv.shape == clean.shape == (8, 3, 48, 48)
    assert tensors["indices"].tolist() == samples["index"].tolist()
    assert tensors["labels"].tolist() == samples["label"].tolist()
    distance = (x_adv - clean).abs().flatten(1).amax(dim=1)
    assert distance.max() <= 16 / 255 + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    broken = ~samples["broken_by"].isin(["clean"]) & ~samples["robust"]
    assert broken.any()
    expected = samples["distance"][broken].to_numpy()
    np.testing.assert_allclose(255 * distance.numpy()[broken], expected, rtol=1e-5)
    model = classifier()
    assert predict(model, clean) == samples["clean_pred"].tolist()
    assert predict(model, x_adv) == samples["adv_pred"].tolist()
    data = clipguard.load_dataset("emoji-food")
    preprocess = clipguard.load_model("tiny").preprocess()
    for image, index in zip(clean, samples["index"], strict=True):
        assert torch.equal(image, preprocess(data.image(index)))


def test_the_rows_agree_with_bench(found: Path) -> None:
    bench = clipguard.bench(datasets=["emoji-food"], attacks=["pgd-5"], eps=["16"], n_samples=8).samples
    own = pd.read_parquet(found / "samples.parquet")[list(SAMPLE_COLUMNS)].astype(SAMPLE_COLUMNS)
    expected = bench[bench.attack == "pgd-5"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, expected)


def test_the_png_files_are_the_rounded_images_and_judged_as_such(found: Path) -> None:
    tensors, samples = load_file(found / "adversarial.safetensors"), pd.read_parquet(found / "samples.parquet")
    pngs = {
        kind: torch.stack([read_png(found / "png" / f"{i}-{kind}.png") for i in samples["index"]])
        for kind in ("clean", "adversarial")
    }
    assert torch.equal(pngs["clean"], tensors["clean"])  # an 8-bit image to begin with
    assert (pngs["adversarial"] - tensors["x_adv"]).abs().max() <= 0.5 / 255 + 1e-6
    right = np.array(predict(classifier(), pngs["adversarial"])) == samples["label"].to_numpy()
    assert (right == samples["robust_as_png"].to_numpy()).all()


def test_quantized_images_survive_as_png(tmp_path: Path) -> None:
    assert run([*FAST, "--quantize", "--out", "q"]) == 0
    tensors = load_file(tmp_path / "q" / "adversarial.safetensors")
    for index, x_adv in zip(tensors["indices"].tolist(), tensors["x_adv"], strict=True):
        assert torch.equal(read_png(tmp_path / "q" / "png" / f"{index}-adversarial.png"), x_adv)
    result = json.loads((tmp_path / "q" / "run.json").read_text())
    assert result["run"]["quantize"] is True
    assert result["summary"]["broken"] > 0
    assert result["summary"]["undone_by_png"] == result["summary"]["png_outside_ball"] == 0


def test_rounding_that_undoes_an_attack_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Between two images of different predictions there is one that a step of 1/255 changes; less than half such a
    # step is rounded away.
    data, loaded = clipguard.load_dataset("emoji-food"), clipguard.load_model("tiny")
    model, preprocess = classifier(), loaded.preprocess()
    images = [preprocess(data.image(i)) for i in range(40)]
    predictions = predict(model, torch.stack(images))
    other = next(i for i, p in enumerate(predictions) if p != predictions[0])
    mixes = torch.stack([images[0] + t * (images[other] - images[0]) for t in torch.linspace(0, 1, 512)])
    mixes = (mixes * 255).round() / 255
    changed = next(i for i, p in enumerate(predict(model, mixes)) if p != predictions[0])
    pixels = (mixes[changed - 1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save("edge.png")
    Path("names.json").write_text(json.dumps(data.class_names))
    Path("templates.txt").write_text("\n".join(data.templates))
    arguments = ["attack", "edge.png", "--classes", "names.json", "--templates", "templates.txt"]
    assert run([*arguments, "--attack", "pgd-20", "--eps", "0.49", "--out", "e"]) == 0
    samples = pd.read_parquet(tmp_path / "e" / "samples.parquet")
    assert samples["broken_by"].tolist() == ["pgd-20"]
    assert samples["robust_as_png"].tolist() == [True]
    out = capfd.readouterr().out
    assert "undone" in out
    assert "undoes 1 of 1 attacks; --quantize" in out


def test_the_same_seed_gives_the_same_bytes_and_another_batch_size_the_same_images(found: Path, tmp_path: Path) -> None:
    assert run([*FAST, "--out", "again"]) == 0
    for name in ("adversarial.safetensors", "grid.png", "samples.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (found / name).read_bytes(), name
    assert run([*FAST, "--batch-size", "3", "--out", "threes"]) == 0
    keep = [c for c in SAMPLE_COLUMNS if c not in ("distance", "margin")]
    threes = pd.read_parquet(tmp_path / "threes" / "samples.parquet")
    pd.testing.assert_frame_equal(threes[keep], pd.read_parquet(found / "samples.parquet")[keep])


def test_provenance_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*FAST, "--out", "r", "--format", "json"]) == 0
    out, err = capfd.readouterr()
    assert out == (tmp_path / "r" / "run.json").read_text()
    assert "convnext_zepto_rms" in err
    result = json.loads(out)
    bench = clipguard.bench(datasets=["emoji-food"], attacks=["none"], n_samples=1).run
    assert set(result["run"]) == {*bench, "labels"} - {"probes"}
    assert result["run"]["complete"] is True
    assert list(result["run"]["attacks"]) == ["pgd-5"]
    assert [c["attack"] for c in result["cells"]] == ["none", "pgd-5"]
    summary = result["summary"]
    assert summary["n"] == 8
    assert summary["clean_correct"] == summary["broken"] + summary["robust"]
    for image in result["images"]:
        assert image["robust"] == (image["adversarial"]["class"] == image["label"])
        assert all(0 < image[kind]["confidence"] <= 1 for kind in ("clean", "adversarial", "png"))


def test_the_table_names_every_image(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["-q", *FAST, "--name", "my run"]) == 0
    out, err = capfd.readouterr()
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-attack-my-run")
    assert err == ""
    for index in pd.read_parquet(folder / "samples.parquet")["index"]:
        assert f" {index} " in out
    assert "8 images:" in out
    assert "As 8-bit PNG" in out


def test_image_files_are_labelled_by_the_model_or_by_hand(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [str(photo(tmp_path / "a.jpg")), str(photo(tmp_path / "b.png", (64, 64), 30))]
    common = ["attack", *files, "--classes", CLASSES, "--attack", "pgd-5"]
    assert run([*common, "--out", "own"]) == 0
    out, err = capfd.readouterr()
    assert "model's own" in out
    assert "b.png" in err
    own = pd.read_parquet(tmp_path / "own" / "samples.parquet")
    assert own["index"].tolist() == [0, 1]
    assert (own["label"] == own["clean_pred"]).all()
    assert not own["broken_by"].eq("clean").any()
    assert run([*common, "--label", "cat", "--label", "blue thing", "--out", "hand"]) == 0
    hand = pd.read_parquet(tmp_path / "hand" / "samples.parquet")
    assert hand["label"].tolist() == [2, 1]
    assert (hand["clean_pred"] == own["clean_pred"]).all()
    described = json.loads((tmp_path / "hand" / "run.json").read_text())["run"]
    assert described["labels"] == "given"
    assert all(f in described["datasets"]["2 images"]["source"] for f in files)
    assert "own" not in capfd.readouterr().out


def test_native_images_keep_their_sizes(tmp_path: Path) -> None:
    files = [str(photo(tmp_path / "a.png", (80, 60))), str(photo(tmp_path / "b.png", (50, 70)))]
    native = ["--resolution", "native", "--norm", "l2", "--eps", "2"]
    assert run(["attack", *files, "--classes", CLASSES, "-a", "pgd-5", *native, "--out", "n"]) == 0
    tensors = load_file(tmp_path / "n" / "adversarial.safetensors")
    assert set(tensors) == {"indices", "labels", "x_adv.0", "x_adv.1", "clean.0", "clean.1"}
    assert tensors["x_adv.0"].shape == (3, 60, 80)
    assert torch.equal(tensors["clean.1"], read_png(Path(files[1])))
    for i in range(2):
        assert (tensors[f"x_adv.{i}"] - tensors[f"clean.{i}"]).norm() <= 2 * (1 + 1e-6)


def test_help_is_light_and_has_examples(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["attack", "--help"]) == 0
    assert "photo.jpg" in capfd.readouterr().out
    code = "import sys; from clipguard.cli import run; run(['attack', '-h']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


BAD = {
    "no classes": (["photo.png"], '--classes "cat,dog,bird"'),
    "one class": (["photo.png", "--classes", "cat"], "cat,dog,bird"),
    "class twice": (["photo.png", "--classes", "cat,cat"], "duplicate"),
    "empty class": (["photo.png", "--classes", "cat,,dog"], "--classes"),
    "unknown label": (["photo.png", "--classes", "cat,dog", "--label", "bat"], "Did you mean 'cat'"),
    "far label": (["photo.png", "--classes", "cat,dog", "--label", "submarine"], "cat, dog"),
    "labels do not fit": (["photo.png", "--classes", "cat,dog", *["--label", "cat"] * 3], "once for each"),
    "label without image": (["--label", "cat"], "--label"),
    "no such image": (["phoot.png", "--classes", "cat,dog"], "phoot.png: no such image"),
    "folder": (["folder", "--classes", "cat,dog"], "--dataset folder"),
    "corrupt image": (["photo.png", "broken.png", "--classes", "cat,dog"], "broken.png cannot be read"),
    "not an image": (["notes.txt", "--classes", "cat,dog"], "notes.txt cannot be read"),
    "image and data set": (["photo.png", "--classes", "cat,dog", "-d", "emoji-food"], "--dataset"),
    "image and n": (["photo.png", "--classes", "cat,dog", "-n", "4"], "--n-samples"),
    "several eps": (["--eps", "1,4"], "2 of them (1, 4)"),
    "several eps options": (["--eps", "1", "--eps", "4"], "takes one"),
    "eps no number": (["--eps", "four"], "--eps"),
    "unknown norm": (["--norm", "l7"], "linf"),
    "several attacks": (["--attack", "pgd-5,apgd-ce"], "--attack names 2"),
    "no attack": (["--attack", "none"], "pgd-10"),
    "unknown attack": (["--attack", "pdg-10"], "pgd-10"),
    "several models": (["-m", "tiny", "-m", "tiny"], "--model names 2"),
    "several data sets": (["-d", "emoji-food", "-d", "emoji-travel"], "--dataset names 2"),
    "unknown model": (["-m", "tinny"], "Did you mean 'tiny'"),
    "unknown data set": (["-d", "emoji-fod"], "emoji-food"),
    "unknown resolution": (["--resolution", "huge"], "native"),
    "unknown format": (["--format", "csv"], "--format"),
    "existing out": (["--out", "folder"], "overwritten"),
    "negative seed": (["--seed", "-1"], "--seed"),
    "no samples": (["-n", "0"], "--n-samples"),
}


@pytest.mark.parametrize(("arguments", "hint"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2_and_touches_nothing(
    arguments: list[str], hint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = photo(tmp_path / "photo.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years")
    before = sorted(tmp_path.rglob("*"))
    assert run(["attack", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert sorted(tmp_path.rglob("*")) == before


def test_two_classes_of_one_name_are_allowed_where_it_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["attack", str(photo(tmp_path / "photo.png")), "--classes", "cat, cat, dog", "--attack", "pgd-2"]
    assert run([*command, "--out", "a"]) == 2
    assert "duplicate class names: 'cat'" in capfd.readouterr().err
    assert run([*command, "--out", "b", "--duplicate-names"]) == 0
    assert "1 of 3 classes have the prompts of another" in " ".join(capfd.readouterr().err.split())
    assert run(["attack", command[1], "--classes", "Cat, cat", "--out", "c"]) == 2
    assert "'Cat' and 'cat' have the same tokens" in capfd.readouterr().err
