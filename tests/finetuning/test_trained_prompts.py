"""The prompts of training: bench's by default; said where a checkpoint is scored with others."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import clipguard
from clipguard.benchmark.plan import BenchPlan
from clipguard.data.templates import PHOTO
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.base import CAPTION_NEEDS
from clipguard.finetuning.methods.registry import METHODS
from clipguard.finetuning.restart import settings_of_run
from clipguard.finetuning.settings import resolve
from clipguard.models.loading import load_model
from clipguard.models.text.trained_prompts import trained_prompts

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
