"""Models and data sets in memory in place of the names in a run's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import StopsAfter

import clipguard
from clipguard.cli import run
from clipguard.core.errors import ClipguardError
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.settings import resolve
from clipguard.finetuning.sources import Sources
from clipguard.models.export import WEIGHTS_NAME
from clipguard.models.loading import hash_tensors

SMALL: dict[str, Any] = {"steps": 2, "batch_size": 4, "attack_steps": 1, "eps": "8", "lr": 1e-3, "preset": "none"}


def pixels(folder: str) -> tuple[np.ndarray, list[int], list[str]]:
    """A folder of images as arrays: (N, H, W, 3) uint8, labels, class names."""
    data = clipguard.load_dataset(folder)
    return np.stack([np.asarray(data.image(i)) for i in range(len(data))]), data.labels.tolist(), data.class_names


def finetune(method: str, out: Path, **settings: Any) -> clipguard.FinetuneResult:
    """A run of two steps."""
    return clipguard.finetune(method, out=out, **(SMALL | settings))


@pytest.mark.parametrize("method", ["tecoa", "tima", "fare"])
def test_objects_train_what_names_train_and_the_model_stays_as_it_was(
    method: str, vit: str, images: str, tmp_path: Path
) -> None:
    named = finetune(method, tmp_path / "named", model=vit, dataset=images)
    model = clipguard.load_model(vit)
    before = hash_tensors(model.model.state_dict())
    data = clipguard.load_dataset(images)
    given = finetune(method, tmp_path / "given", model=model, dataset=data)
    assert (given.out / WEIGHTS_NAME).read_bytes() == (named.out / WEIGHTS_NAME).read_bytes()
    assert hash_tensors(model.model.state_dict()) == before
    assert not any(weight.requires_grad for weight in model.model.parameters())
    assert given.run["evaluation"]["scores"] == named.run["evaluation"]["scores"]
    assert given.run["dataset"]["fingerprint"] == named.run["dataset"]["fingerprint"]
    assert given.run["in_memory"] == {"model": before, "dataset": given.run["dataset"]["fingerprint"]}
    assert "in_memory" not in named.run
    assert "<emoji" not in given.run["command"]
    assert f"'model': <{vit} in memory>" in given.run["command"]
    assert clipguard.FinetuneResult.load(given.out) == given


def test_arrays_and_tables_train_what_a_folder_trains(vit: str, images: str, tmp_path: Path) -> None:
    arrays = pixels(images)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=arrays[2])})
    rows = {"image": [Image.fromarray(one) for one in arrays[0]], "label": arrays[1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    model = clipguard.load_model(vit)
    named = finetune("tecoa", tmp_path / "named", model=vit, dataset=images)
    for name, data in (("arrays", arrays), ("table", table)):
        given = finetune("tecoa", tmp_path / name, model=model, dataset=data, decoders=1)
        assert (given.out / WEIGHTS_NAME).read_bytes() == (named.out / WEIGHTS_NAME).read_bytes()
        assert given.run["config"]["dataset"] == "in-memory"
        assert given.run["dataset"]["source"] == "memory"
        assert "in-memory was given without a test split" in given.run["evaluation"]["images"]
    classes = ",".join(arrays[2])
    assert finetune("tecoa", tmp_path / "classes", model=model, dataset=arrays[:2], classes=classes).run["complete"]


def test_a_model_that_was_changed_in_memory_is_what_is_trained(vit: str, images: str, tmp_path: Path) -> None:
    """At `wise_ft=0` the result is the model as it came."""
    model = clipguard.load_model(vit).copy("mine")
    with torch.no_grad():
        model.model.visual.proj.mul_(2)  # type: ignore[union-attr, operator]
    result = finetune("tecoa", tmp_path / "out", model=model, dataset=images, wise_ft=0.0, lora=2)
    written = clipguard.load_model(f"local-dir:{result.out}").model.state_dict()
    assert hash_tensors(written) == result.run["in_memory"]["model"] == hash_tensors(model.model.state_dict())
    assert result.run["config"]["model"] == "mine"
    card = (result.out / "README.md").read_text("utf-8")
    assert f"mine, in memory, weights `{result.run['in_memory']['model'][:16]}…`" in card


def test_a_run_of_objects_is_not_resumed(
    vit: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve({**SMALL, "method": "tecoa", "model": vit, "dataset": images, "steps": 9})
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_finetune(config, out, "", StopsAfter(24 + 5), sources=Sources(clipguard.load_model(vit)))
    with pytest.raises(ClipguardError, match="was given `model` in memory, which is gone: start it again from Python"):
        resume_finetune(out)
    capsys.readouterr()
    assert run(["finetune", "--resume", str(out)]) == 2
    error = capsys.readouterr().err
    assert "in memory, which is gone" in error
    assert error.count("\n") == 1
    assert json.loads((out / "run.json").read_text())["complete"] is False
    assert run(["finetune", "--config", str(out / "run.json"), "--out", str(tmp_path / "again")]) == 2
    assert "objects in memory" in capsys.readouterr().err


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a module": ({"model": torch.nn.Linear(2, 2)}, r"\(Linear\) is no CLIP model: it has no config, text tower"),
    "a list": ({"model": ["tiny"]}, "`model` takes names and what `load_model` gives, not a list"),
    "a number": ({"model": 3}, "`model` must be a text"),
    "no data set": ({"dataset": 3}, "`dataset` takes names"),
    "several splits": ({"dataset": datasets.DatasetDict()}, "`dataset` takes names, .* not a DatasetDict"),
    "no class names": ({"dataset": (np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1])}, "need class names"),
    "too few": ({"dataset": (np.zeros((1, 8, 8, 3), np.uint8), [0], ["a", "b"])}, "too few to train on"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ClipguardError, match=message) as caught:
        finetune("tecoa", tmp_path / "out", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_test_data_in_memory_is_not_trained_on_unless_named(vit: str, tmp_path: Path) -> None:
    how = {"model": vit, "dataset": clipguard.load_dataset("emoji-food", templates="single"), "n_samples": 12}
    with pytest.raises(ClipguardError, match="is the split 'test' of its data, which is for testing: load its train"):
        finetune("tecoa", tmp_path / "out", **how)
    with pytest.raises(ClipguardError, match="in memory as its split 'test', and has no 'train': leave `split` out"):
        finetune("tecoa", tmp_path / "out", split="train", **how)
    with pytest.raises(ClipguardError, match="`templates` is for names"):
        finetune("tecoa", tmp_path / "out", templates="single", **how)
    assert finetune("tecoa", tmp_path / "out", split="test", **how).run["dataset"]["split"] == "test"
