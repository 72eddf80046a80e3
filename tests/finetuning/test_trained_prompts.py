"""The prompts of training: bench's by default; said where a checkpoint is scored with others."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

import clipguard
from clipguard.benchmark.plan import BenchPlan
from clipguard.data.templates import PHOTO
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.base import CAPTION_NEEDS
from clipguard.finetuning.methods.registry import METHODS
from clipguard.finetuning.restart import settings_of_run
from clipguard.finetuning.settings import resolve
from clipguard.models.loading import load_model
from clipguard.models.text.trained_prompts import record_prompts, trained_prompts

ENSEMBLE = PHOTO.ensemble
SHORT: dict[str, Any] = {"steps": 1, "batch_size": 4, "attack_steps": 1, "evaluation": False, "val_fraction": 0.0}


@pytest.fixture(scope="module")
def tuned(vit: str, images: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints: of one prompt, of the ensemble, and of one prompt by a method that reads none."""
    folders = {}
    for name, method, given in (("one", "tecoa", {"templates": "single"}), ("all", "tecoa", {}), ("fare", "fare", {})):
        folders[name] = tmp_path_factory.mktemp("prompts") / name
        clipguard.finetune(method, model=vit, dataset=images, out=folders[name], **SHORT, **given)
    return folders


def warnings(caplog: pytest.LogCaptureFixture, dataset: str, models: list[Path | str], **settings: Any) -> list[str]:
    caplog.clear()
    names = [f"local-dir:{model}" if isinstance(model, Path) else model for model in models]
    with caplog.at_level(logging.WARNING, "clipguard"):
        clipguard.bench(names, dataset, "8", "none", n_samples=6, probes=False, **settings)
    return [record.getMessage() for record in caplog.records if "trained with" in record.getMessage()]


def test_training_takes_the_prompts_of_bench_and_presets_of_papers_their_own() -> None:
    assert FinetuneConfig().templates == BenchPlan.templates == "ensemble"
    assert resolve({}).templates == resolve({"model": "tiny", "preset": "embedded"}).templates == "ensemble"
    for method, kind in METHODS.items():
        others = method == "saft" or kind().prompt_design() is not None or kind().all_needs() & CAPTION_NEEDS
        if "paper" in kind.presets and not others:
            prompt = resolve({"method": method, "preset": "paper"}).templates
            assert prompt == f"This is a photo of a {{}}{'.' if method == 'agft' else ''}"


def test_unfinished_runs_keep_the_prompt_that_they_began_with() -> None:
    for stored in ({"templates": "single"}, {}):  # the second of a time when there was nothing to choose
        assert settings_of_run({"config": {**stored, "batch_size": 8}}).templates == "single"  # type: ignore[typeddict-item]
    assert FinetuneConfig.from_dict(FinetuneConfig().to_dict()) == FinetuneConfig()


def test_bench_warns_of_other_prompts(
    tuned: dict[str, Path], vit: str, images: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, many = tuned["one"], tuned["all"]
    infos = {name: load_model(f"local-dir:{folder}").info for name, folder in tuned.items()}
    assert [infos[name].trained_prompts for name in ("one", "all", "fare")] == [PHOTO.single, ENSEMBLE, ()]
    assert infos["all"].to_dict()["trained_prompts"] == list(ENSEMBLE)
    assert "trained_prompts" not in infos["fare"].to_dict()

    (line,) = warnings(caplog, images, [one, many, tuned["fare"], vit])
    assert line.startswith(
        f"local-dir:{one} was trained with the prompt 'a photo of a {{}}.' and is scored with others on"
    )
    assert warnings(caplog, images, [one], templates="single") == []
    (line,) = warnings(caplog, images, [many], templates="a {}.")
    assert line.startswith(f"local-dir:{many} was trained with 7 prompts such as 'itap of a {{}}.' and is scored with")


def prompts_of(folder: Path) -> tuple[str, ...]:
    return load_model(f"local-dir:{folder}").info.trained_prompts


def test_convert_carries_the_prompts(
    tuned: dict[str, Path], images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the weight file itself, from layout to layout; what was not fine-tuned keeps its bytes."""
    source = f"local-dir:{tuned['one']}"
    made = clipguard.convert(source, tmp_path / "open_clip")
    hf = clipguard.convert(f"local-dir:{made}", tmp_path / "hf", to="hf")
    back = clipguard.convert(clipguard.load_model(f"local-dir:{hf}"), tmp_path / "back")
    assert [prompts_of(folder) for folder in (made, hf, back)] == [PHOTO.single] * 3
    assert "| Fine-tuned with | the prompt 'a photo of a" in (hf / "README.md").read_text()
    (line,) = warnings(caplog, images, [made])
    assert "was trained with the prompt 'a photo of a {}.'" in line
    assert warnings(caplog, images, [made], templates="single") == []

    name = "open_clip_model.safetensors"
    again = clipguard.convert(source, tmp_path / "again") / name
    assert again.read_bytes() == (made / name).read_bytes() == (back / name).read_bytes()
    weights = {folder: load_file(folder / name) for folder in (made, tuned["one"])}
    for key, value in weights[tuned["one"]].items():
        assert torch.equal(value, weights[made][key])
    plain = clipguard.convert(f"local-dir:{tuned['fare']}", tmp_path / "fare")
    assert (plain / name).read_bytes() == (tuned["fare"] / name).read_bytes()
    assert prompts_of(plain) == ()


def test_transformers_and_open_clip_load_what_has_prompts_in_it(tuned: dict[str, Path], tmp_path: Path) -> None:
    hf = clipguard.convert(f"local-dir:{tuned['all']}", tmp_path / "hf", to="hf")
    model = pytest.importorskip("transformers").CLIPModel.from_pretrained(hf)
    made = clipguard.convert(f"local-dir:{tuned['all']}", tmp_path / "made")
    theirs = open_clip.create_model(f"local-dir:{made}", require_pretrained=True)
    assert torch.equal(model.visual_projection.weight.T, theirs.visual.proj)


def test_merge_carries_what_is_not_in_doubt(
    tuned: dict[str, Path], vit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {name: f"local-dir:{folder}" for name, folder in tuned.items()} | {"vit": vit}
    cases: list[tuple[str, str, float, tuple[str, ...]]] = [
        ("vit", "one", 0.5, PHOTO.single),
        ("one", "vit", 0.5, PHOTO.single),
        ("one", "one", 0.5, PHOTO.single),
        ("vit", "fare", 0.5, ()),
        ("one", "all", 0.5, ()),
        ("one", "all", 0, PHOTO.single),  # the first model itself
        ("vit", "one", 0, ()),
        ("one", "all", 1, ENSEMBLE),
    ]
    for number, (base, other, alpha, expected) in enumerate(cases):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "clipguard"):
            folder = clipguard.merge(names[base], names[other], alpha, tmp_path / str(number))
        assert prompts_of(folder) == expected, (base, other, alpha)
        said = [record.getMessage() for record in caplog.records if "no prompts are recorded" in record.getMessage()]
        assert len(said) == ((base, other, alpha) == ("one", "all", 0.5))


def test_a_damaged_record_is_none(tuned: dict[str, Path], tmp_path: Path) -> None:
    content = (tuned["fare"] / "open_clip_model.safetensors").read_bytes()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(record_prompts(content, ("a {}.",)))
    assert trained_prompts(path, "") == ("a {}.",)
    path.write_bytes(path.read_bytes().replace(b'"[\\"a {}.\\"]"', b'"{\\"a {}.\\"]"'))
    assert trained_prompts(path, "") == ()
    assert load_file(path).keys() == load_file(tuned["fare"] / "open_clip_model.safetensors").keys()


def test_the_card_says_so(tuned: dict[str, Path]) -> None:
    card = {name: (folder / "README.md").read_text() for name, folder in tuned.items()}
    names = ("one", "all", "fare")
    assert ["may recognise far less with others" in card[name] for name in names] == [True, True, False]
    assert ["not those that `clipguard bench` takes" in card[name] for name in names] == [True, False, False]


def test_runs_that_do_not_say_it_and_files_that_are_none(tuned: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tuned["one"], folder)
    run = json.loads((folder / "run.json").read_text())
    assert run.pop("trained_prompts") == list(PHOTO.single)
    cases = {
        "older": (json.dumps(run), PHOTO.single),
        "older-fare": (json.dumps({**run, "config": {**run["config"], "method": "fare(clean_weight=0.5)"}}), ()),
        "other-weights": (json.dumps({**run, "sha256": "0"}), ()),
        "unfinished": (json.dumps({name: value for name, value in run.items() if name != "sha256"}), ()),
        "other-program": ('["a"]', ()),
        "no-json": ("{", ()),
    }
    weights = folder / "open_clip_model.safetensors"
    for name, (content, prompts) in cases.items():
        (folder / "run.json").write_text(content)
        assert trained_prompts(weights, run["sha256"]) == prompts, name
    (folder / "run.json").unlink()
    assert trained_prompts(weights, run["sha256"]) == ()
