"""convert, inspect, --base and --normalization: what is typed, what comes out, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipguard
from clipguard.cli import run


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image tower of the embedded model, as TeCoA's code saves it."""
    path = tmp_path_factory.mktemp("tower") / "tuned.pth.tar"
    visual = clipguard.load_model("tiny").model.visual.state_dict()
    torch.save({"epoch": 3, "vision_encoder_state_dict": visual, "args": {"eps": 1}}, path)
    return path


def test_convert_is_exact_and_bench_agrees(tower: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["convert", str(tower), "--base", "tiny", "--normalization", "imagenet", "-o", str(out)]) == 0
    assert capfd.readouterr().out == f"local-dir:{out}\n"
    assert {path.name for path in out.iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "README.md"
    }  # fmt: skip
    tiny = clipguard.load_model("tiny").model.state_dict()
    assert all(torch.equal(tiny[name], t) for name, t in load_file(out / "open_clip_model.safetensors").items())
    assert clipguard.load_model(f"local-dir:{out}").info.mean == (0.485, 0.456, 0.406)
    assert f"`{tower}@tiny#normalization=imagenet`" in (out / "README.md").read_text()
    again = ["bench", "-n", "8", "-d", "emoji-food", "-a", "none", "-f", "json", "--device", "cpu", "--no-store"]
    assert run([*again, "-m", f"local-dir:{out}", "-o", str(tmp_path / "a")]) == 0
    first = json.loads(capfd.readouterr().out)
    options = ["-m", str(tower), "-m", "tiny", "--base", "tiny", "--normalization", "imagenet"]
    assert run([*again, *options, "-o", str(tmp_path / "b")]) == 0
    second = json.loads(capfd.readouterr().out)
    assert second["cells"][0]["accuracy"] == first["cells"][0]["accuracy"] == second["cells"][1]["accuracy"]
    stored = next(info for name, info in second["run"]["models"].items() if name.startswith(str(tower)))
    assert (stored["base"], stored["format"]) == ("tiny", "image tower as TeCoA saves it")


def test_inspect_says_how_to_bench(tower: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tower)]) == 0
    text = capfd.readouterr().out
    assert "under vision_encoder_state_dict" in text
    assert "--base" in text
    assert run(["inspect", f"{tower}@tiny", "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["command"] == f"clipguard bench --model {tower}@tiny"
    assert found["training"] == {"epoch": 3, "args": {"eps": 1}}


def test_attack_and_finetune_take_a_base(tower: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["-m", str(tower), "--base", "tiny"]
    attack = ["attack", *options, "-n", "2", "-a", "fgsm", "-o", str(tmp_path / "a"), "--device", "cpu"]
    assert run(attack) == 0
    length = ["--steps", "1", "--batch-size", "2", "-n", "20", "--eval-samples", "2", "--attack-steps", "1"]
    tune = ["finetune", "--method", "fare", *options, *length, "-o", str(tmp_path / "t"), "--device", "cpu"]
    assert run(tune) == 0
    assert json.loads((tmp_path / "t" / "run.json").read_text())["config"]["model"] == f"{tower}@tiny"
    capfd.readouterr()
    assert run(["finetune", "--base", "tiny", "-o", str(tmp_path / "x")]) == 2
    assert "go with --model" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["bench", "-m", "TOWER"], "holds an image tower alone"),
        (["bench", "-m", "TOWER"], "--base ARCH:TAG"),
        (["bench", "-m", "tiny", "--base", "tiny"], "--model names none without a base"),
        (["bench", "-m", "TOWER", "--base", "tinny"], "Did you mean 'tiny'"),
        (["bench", "-m", "tiny", "--normalization", "no"], "--normalization 'no' cannot be read"),
        (["convert", "TOWER"], "holds an image tower alone"),
        (["convert", "TOWER@tiny", "--to", "hf"], "no counterpart in transformers"),
        (["bench", "-m", "fare4-vitb32"], "path/to/vitb32_fare_eps_4.pt@ViT-B-32-quickgelu:openai"),
        (["bench", "-m", "fare4-vitl15"], "Did you mean 'fare4-vitl14'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], part: str, tower: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    typed = [argument.replace("TOWER", str(tower)) for argument in arguments]
    assert run([*typed, "--out", str(out)]) == 2
    captured = capfd.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("Error: ")]
    assert part in errors[0]
    assert captured.err.splitlines()[-1] == errors[0]
    assert captured.out == ""
    assert not out.exists()


def test_list_models_shows_what_others_published(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "models"]) == 0
    text = capfd.readouterr().out
    assert "hf-hub:chs20/fare4-clip" in text
    assert "clean 61.1; eps 2/255 45.9, eps 4/255 32.4" in text
    assert "not verified: contents of the repository" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "-m", "FILE", "-o", "OUT"],
        ["bench", "-m", "FILE", "--base", "tiny", "-o", "OUT"],
        ["bench", "-m", "TOWER", "--base", "FILE", "-o", "OUT"],
        ["attack", "-m", "FILE", "-o", "OUT"],
        ["finetune", "--method", "fare", "-m", "FILE", "-o", "OUT"],
        ["doctor", "-m", "FILE"],
        ["compare", "FILE", "tiny"],
        ["merge", "tiny", "FILE", "--alpha", "0.5", "-o", "OUT"],
        ["convert", "FILE", "-o", "OUT"],
        ["inspect", "FILE"],
    ],
)
@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "run git lfs pull"),
    ],
)
def test_a_file_that_is_no_weight_file_is_named_by_every_command(
    content: bytes, part: str, arguments: list[str], tower: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "w.pth", tmp_path / "out"
    path.write_bytes(content)
    names = {"FILE": str(path), "TOWER": str(tower), "OUT": str(out)}
    assert run([names.get(argument, argument) for argument in arguments]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert str(path) in last
    assert part in last
    assert not out.exists()


def test_what_is_left_out_of_a_checkpoint_is_in_the_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """torch's AveragedModel of the embedded model scores as the embedded model does."""
    model = clipguard.load_model("tiny").model
    folder = tmp_path / "average"
    folder.mkdir()
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), folder / "pytorch_model.bin")
    config = Path(clipguard.__file__).parent / "assets" / "models" / "tiny" / "open_clip_config.json"
    (folder / config.name).write_bytes(config.read_bytes())
    options = ["-n", "20", "-d", "emoji-food", "-a", "none", "-f", "json", "--device", "cpu", "--no-store"]
    assert run(["bench", *options, "-m", "tiny", "-m", f"local-dir:{folder}", "-o", str(tmp_path / "o")]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    accuracies = [cell["accuracy"] for cell in result["cells"]]
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]
    text = f"{folder / 'pytorch_model.bin'}: left out: n_averaged (1 tensor outside the model)"
    assert {"kind": "skipped", "text": text} in result["run"]["notices"]
    assert "left out: n_averaged" in " ".join(captured.err.split())
