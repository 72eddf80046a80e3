"""`clipguard finetune` as a user meets it: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from shutil import copyfile
from typing import NamedTuple

import open_clip
import pytest
import torch
import yaml
from PIL import Image
from training_runs import write_images

import clipguard
from clipguard.cli import run
from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.files.config_files import read_config_file
from clipguard.finetuning.settings import resolve

FILES = {"README.md", "curves.png", "metrics.jsonl", "open_clip_config.json", "open_clip_model.safetensors", "run.json"}
SMALL = ["--steps", "3", "--batch-size", "4", "--attack-steps", "2", "--eps", "8", "--lr", "1e-3", "--preset", "none"]
SMALL += ["--eval-every", "2"]


class Run(NamedTuple):
    """The folder of a finished run, and what it printed."""

    out: Path
    stdout: str
    stderr: str


Finetune = Callable[..., Run]


@pytest.fixture(scope="module")
def finetuned(vit: str, images: str, tmp_path_factory: pytest.TempPathFactory) -> Finetune:
    """A run of a method with some options, made once for all tests that only look at it."""
    runs: dict[tuple[str, ...], Run] = {}

    def get(method: str, *extra: str) -> Run:
        arguments = ("--method", method, *extra)
        if arguments not in runs:
            out, stdout, stderr = tmp_path_factory.mktemp("runs") / "out", io.StringIO(), io.StringIO()
            with redirect_stdout(stdout), redirect_stderr(stderr):
                assert run(["finetune", *arguments, "-m", vit, "-d", images, *SMALL, "--out", str(out)]) == 0
            runs[arguments] = Run(out, stdout.getvalue(), " ".join(stderr.getvalue().split()))
        return runs[arguments]

    return get


def test_the_default_gains_robust_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model by TIMA, with fewer steps than the default: at eps 8/255 on the test split, PGD-10."""
    out = tmp_path / "tuned"
    command = ["finetune", "--steps", "40", "--batch-size", "20", "--eval-every", "40", "--eval-samples", "60"]
    assert run([*command, "--val-fraction", "0.03", "--out", str(out), "--format", "json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.out == (out / "run.json").read_text()
    assert {path.name for path in out.iterdir()} == FILES | {"original_text.safetensors"}
    before, after = (result["evaluation"]["scores"][who] for who in ("tiny", "fine-tuned"))
    assert before["robust"]["accuracy"] < 0.1
    assert after["robust"]["accuracy"] > before["robust"]["accuracy"] + 0.1
    assert after["clean"]["accuracy"] > before["clean"]["accuracy"] - 0.15
    assert result["evaluation"]["images"] == "60 held-out images of emoji-animals, split test"
    assert result["config"]["method"] == "tima"
    assert result["complete"]
    assert "Settings: method tima" in " ".join(captured.err.split())
    bench = clipguard.bench(f"local-dir:{out}", "emoji-animals", "8", "pgd-10", n_samples=60, probes=False)
    clean, robust = (cell.correct for cell in bench.cells)
    assert (clean, robust) == (after["clean"]["correct"], after["robust"]["correct"])


@pytest.mark.parametrize("extra", [(), ("--lora", "2"), ("--ema", "0.5"), ("--wise-ft", "0.6")])
@pytest.mark.parametrize("method", ["tecoa", "tima"])
def test_open_clip_loads_what_is_written_with_equal_logits(
    method: str, extra: tuple[str, ...], vit: str, images: str, finetuned: Finetune
) -> None:
    out = finetuned(method, *extra, *(["--no-evaluation"] if extra else [])).out
    with quiet_libraries():
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    path = next(Path(images).rglob("*.png"))
    names, template = ["kind 0", "kind 1", "kind 2"], "a photo of a {}."
    with torch.no_grad():
        image = model.eval().encode_image(preprocess(Image.open(path)).unsqueeze(0), normalize=True)
        text = model.encode_text(tokenizer([template.format(name) for name in names]), normalize=True)
        theirs = model.logit_scale.exp() * image @ text.T
    loaded = clipguard.load_model(f"local-dir:{out}")
    ours = loaded.classifier(names, [template])(loaded.preprocess()(Image.open(path)).unsqueeze(0))
    base = clipguard.load_model(vit)
    original = base.classifier(names, [template])(base.preprocess()(Image.open(path)).unsqueeze(0))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, original, atol=1e-3)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values() if value.is_floating_point())


def test_the_card_and_the_record(finetuned: Finetune) -> None:
    out, table, _ = finetuned("tecoa")
    assert "PGD-10, linf eps 8/255" in table
    assert f"local-dir:{out}" in table.replace("\n", "")
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "open_clip" in front["tags"]
    assert "validation images, which chose the checkpoint" in card  # there is no test split
    assert "licence" in card
    assert f"`clipguard bench --model local-dir:{out.name} --templates ensemble`" in card
    record = json.loads((out / "run.json").read_text())
    dataset = record["dataset"]
    assert sorted(dataset["train_indices"] + dataset["validation_indices"]) == list(range(24))
    assert record["base"]["sha256"] != record["sha256"]
    assert record["resolved"]["steps"] == 3
    assert record["resolved"]["chosen_by"].startswith("mean of clean and PGD-10")
    assert record["versions"]["clipguard"] == clipguard.__version__
    assert Image.open(out / "curves.png").width > 500


def test_methods_without_labels_take_a_flat_folder(vit: str, images: str, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(Path(images).rglob("*.png"))):
        copyfile(path, flat / f"{number}.png")
    out = tmp_path / "out"
    command = ["-q", "finetune", "--method", "fare", "-m", vit, "-d", str(flat), *SMALL]
    assert run([*command, "--out", str(out)]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["evaluation"]["scores"] == {}
    assert record["resolved"]["chosen_by"] == "loss on validation images"
    assert run([*command, "--out", str(tmp_path / "x"), "--method", "tecoa"]) == 2


def test_fare_on_labelled_data_is_chosen_by_loss_and_scored_by_accuracy(vit: str, images: str, tmp_path: Path) -> None:
    result = clipguard.finetune(
        "fare", out=tmp_path / "out", model=vit, dataset=images, preset="none", steps=2, batch_size=4, attack_steps=1
    )
    assert result.run["resolved"]["chosen_by"] == "loss on validation images"
    assert result.run["evaluation"]["scores"]["fine-tuned"]["clean"]["n"] == 2


def test_without_validation_images_the_last_step_is_exported(vit: str, images: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["-q", "finetune", "--method", "tecoa", "-m", vit, "-d", images, *SMALL, "--val-fraction", "0"]
    assert run([*command, "--out", str(out)]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["resolved"]["exported_step"] == 3
    assert record["dataset"]["n_validation"] == 0


def test_tensorboard_gets_the_numbers(vit: str, images: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "out"
    command = ["-q", "finetune", "--method", "tecoa", "-m", vit, "-d", images, *SMALL, "--tracker", "tensorboard"]
    assert run([*command, "--out", str(out)]) == 0
    assert list(out.rglob("events.out.tfevents.*"))


BAD = {
    "eps 0": (["--eps", "0"], "--eps must be a number above 0"),
    "several eps": (["--eps", "1,4"], "one number"),
    "eps no number": (["--eps", "four"], "--eps"),
    "unknown method": (["--method", "timma"], "Did you mean 'tima'"),
    "unknown preset": (["--preset", "papper"], "has no preset"),
    "unknown model": (["-m", "tinny"], "Did you mean 'tiny'"),
    "unknown data set": (["-d", "emoji-animal"], "emoji-animals"),
    "no such split": (["--split", "tran"], "Did you mean 'train'"),
    "one class": (["-d", "one"], "only one class"),
    "no labels": (["-d", "flat"], "class/x.jpg"),
    "too few images": (["-n", "2", "--val-fraction", "0.9"], "too few"),
    "unknown layers": (["--train", "last"], "last-N"),
    "text outside the weights": (["--method", "tima(text=free)", "--wise-ft", "0.5"], "--wise-ft"),
    "unknown device": (["--device", "quantum"], "--device"),
    "unknown tracker": (["--tracker", "mlflow"], "--tracker 'mlflow' is unknown"),
    "missing config": (["--config", "none.yaml"], "none.yaml"),
    "missing template file": (["--templates", "none.txt"], "none.txt"),
    "used folder": (["--out", "flat"], "exists already"),
    "nothing to resume": (["--resume", "flat"], "holds no fine-tuning run"),
    "unknown option": (["--frobnicate"], "--frobnicate"),
}


@pytest.mark.parametrize(("arguments", "hint"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2_and_touches_nothing(
    arguments: list[str],
    hint: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "one", classes=1)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes((tmp_path / "one" / "kind 0" / "0.png").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    assert run(["-q", "finetune", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert sorted(tmp_path.rglob("*")) == before


def test_methods_are_listed_with_options_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "methods"]) == 0
    listed = capsys.readouterr().out
    assert "margin_mode=distance" in listed
    assert "--preset paper" in listed


def test_the_evaluation_is_announced_told_and_can_be_left_out(finetuned: Finetune, tmp_path: Path) -> None:
    """Said before the first step: how many images and passes; without it every output says that there was none."""
    out, _, said = finetuned("tecoa")
    announced = "The evaluation at the end: 2 validation images"
    assert announced in said
    assert "at most 52 passes. --eval-samples N takes fewer images, --no-evaluation none" in said
    assert said.index(announced) < said.index("Step ")
    evaluation = json.loads((out / "run.json").read_text(encoding="utf-8"))["evaluation"]
    assert evaluation["scores"]["fine-tuned"]["clean"]["n"] == 2
    (tmp_path / "settings.yaml").write_text("evaluation: false\n", encoding="utf-8")
    assert resolve({}, read_config_file(tmp_path / "settings.yaml")).evaluation is False
    out, table, said = finetuned("tecoa", "--no-evaluation")
    assert "The evaluation at the end" not in said
    assert "Not evaluated: switched off, by --no-evaluation." in table
    recorded = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert recorded["config"]["evaluation"] is False
    assert recorded["evaluation"]["scores"] == {}
    assert "Not measured: switched off, by --no-evaluation." in (out / "README.md").read_text(encoding="utf-8")
