"""What `inspect` says of a file, and the published checkpoints by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import save_bare, save_state_dict, save_tecoa, tuned_model
from tiny_models import CONFIGS, write_model

from clipguard.core.errors import ModelError
from clipguard.models import load_model, parse_source
from clipguard.models.checkpoint.reader import hash_file
from clipguard.models.inspection import inspect_model
from clipguard.models.sources.locate import locate, with_known_activation
from clipguard.models.sources.open_clip_catalog import architectures
from clipguard.models.sources.published import find_published, published_models

Folder = Callable[[str], Path]


def test_an_image_tower_with_its_training(model_folder: Folder, tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "model_best.pth.tar"
    save_tecoa(tuned_model(model_folder("vit-quick")), path)
    found = inspect_model(str(path))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    assert (found.container, found.entry, found.towers) == ("torch.save", "vision_encoder_state_dict", ["image"])
    assert found.architectures == [architecture, f"{architecture}-quickgelu"]
    assert found.sha256 == hash_file(path)
    assert found.training == {"epoch": 3, "args": {"train_eps": 1.0, "arch": "vit_b32"}}
    assert "`base=" in found.needs
    assert found.command == ""
    based = inspect_model(f"{path}@local-dir:{model_folder('vit-quick')}")
    assert based.needs == ""
    assert load_model(based.command.removeprefix("clipguard bench --model ")).info.sha256 == found.sha256


def test_a_whole_model_and_a_folder(model_folder: Folder, tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "epoch_3.pt"
    save_state_dict(tuned_model(model_folder("vit-quick")), path)
    open_question = inspect_model(str(path))
    assert open_question.towers == ["image", "text"]
    assert open_question.activation == "not known"
    assert f"{architecture}-quickgelu:{path}" in open_question.needs
    assert open_question.training == {"epoch": 3, "name": "run"}
    named = inspect_model(f"{architecture}-quickgelu:{path}")
    assert (named.activation, named.needs) == ("QuickGELU", "")
    assert named.command == f"clipguard bench --model {architecture}-quickgelu:{path}"
    folder = inspect_model(f"local-dir:{model_folder('vit')}")
    assert (folder.activation, folder.container, folder.dtypes) == ("GELU", "safetensors", {"float32": folder.tensors})
    assert folder.command == f"clipguard bench --model local-dir:{model_folder('vit')}"


def test_tags_are_no_files() -> None:
    with pytest.raises(ModelError, match="names weights that open_clip publishes"):
        inspect_model("ViT-B-32-quickgelu:openai")


def test_the_table_of_published_models() -> None:
    entries = published_models()
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.architecture in architectures()
        assert bool(entry.hub) != bool(entry.where), entry.name
        assert entry.unverified  # nothing was checked against the files themselves
        if entry.hub and entry.file:
            source = parse_source(entry.name)
            assert source.weights == f"hf-hub:{entry.hub}/{entry.file}"
            assert source.base == parse_source(entry.base)
            assert entry.base == f"{entry.architecture}:openai"
        elif entry.hub:
            assert parse_source(entry.name).name == entry.hub
        else:
            assert parse_source(entry.base).name == entry.architecture
            with pytest.raises(ModelError, match=f"download {entry.file} .*`model` path/to/{entry.file}@{entry.base}"):
                parse_source(entry.name)
    documented = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    assert all(f"| `{entry.name}` | {entry.method} | {entry.architecture} |" in documented for entry in entries)
    fare = find_published("fare4-vitl14")
    assert fare is not None
    assert (fare.hub, fare.eps, fare.quick_gelu) == ("chs20/fare4-clip", "4", True)


def test_a_published_model_tuned_from_openais_has_quickgelu(tmp_path: Path) -> None:
    """Whatever its config leaves unsaid; a config that says something is believed."""
    checkpoint = locate(parse_source(f"local-dir:{write_model(tmp_path, 'vit')}"))
    assert "quick_gelu" not in checkpoint.model_cfg
    assert with_known_activation(checkpoint, "chs20/fare4-clip").model_cfg == {**CONFIGS["vit"], "quick_gelu": True}
    assert "tuned from OpenAI's weights" in with_known_activation(checkpoint, "chs20/fare4-clip").notes[0]
    assert with_known_activation(checkpoint, "org/repo") is checkpoint


def test_numbers_that_json_cannot_hold(model_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    save_bare(tuned_model(model_folder("vit")), path)
    state = torch.load(path)
    torch.save({"state_dict": state, "loss": float("nan"), "best": torch.tensor(3.0), "steps": list(range(50))}, path)
    assert inspect_model(str(path)).training == {"loss": "nan", "best": 3.0}
