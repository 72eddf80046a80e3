"""Weights in several files with an index, in folders, by the index's name, and from the hub's cache."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from tiny_models import reference_model, state_of

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.convert import convert_files
from clipguard.models.inspection import inspect_model

State = dict[str, torch.Tensor]
Folder = Callable[[str], Path]


def write_shards(state: State, folder: Path, name: str, index: str = "") -> list[Path]:
    """As transformers' save_pretrained does; returns the files, the index last."""
    stem, suffix = name.rsplit(".", 1)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern=f"{stem}{{suffix}}.{suffix}", max_shard_size="1500KB"
    )
    for file, names in split.filename_to_tensors.items():
        part = {key: state[key].clone() for key in names}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    path = folder / (index or f"{name}.index.json")
    path.write_text(json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}))
    files = sorted(split.filename_to_tensors)
    assert len(files) > 1
    return [*(folder / file for file in files), path]


def folder_of(kind: str, source: Path, to: Path) -> tuple[Path, State]:
    """A model folder without weights, of open_clip's or transformers' layout, and the weights."""
    to.mkdir()
    if kind == "open_clip":
        shutil.copy(source / "open_clip_config.json", to)
        return to, load_file(source / "open_clip_model.safetensors")
    files = convert_files(load_model(f"local-dir:{source}"), "hf")
    weights = to.parent / "model.safetensors"
    weights.write_bytes(files.pop("model.safetensors"))
    for name, content in files.items():
        (to / name).write_bytes(content)
    return to, load_file(weights)


@pytest.mark.parametrize(
    ("kind", "name", "index"),
    [
        ("hf", "model.safetensors", ""),
        ("hf", "pytorch_model.bin", ""),
        ("hf", "model.fp16.safetensors", "model.safetensors.index.fp16.json"),
        ("open_clip", "open_clip_model.safetensors", ""),
        ("open_clip", "open_clip_pytorch_model.bin", ""),
    ],
)
def test_a_folder_in_several_files_is_the_one_in_one(
    kind: str, name: str, index: str, model_folder: Folder, tmp_path: Path
) -> None:
    source = model_folder("vit")
    folder, state = folder_of(kind, source, tmp_path / "model")
    files = write_shards(state, folder, name, index)
    loaded = load_model(f"local-dir:{folder}")
    expected = state_of(reference_model(source))
    assert all(torch.equal(tensor, loaded.model.state_dict()[key]) for key, tensor in expected.items())
    found = inspect_model(f"local-dir:{folder}")
    assert found.sha256 == loaded.info.sha256
    assert found.bytes == sum(path.stat().st_size for path in files[:-1])
    assert found.container.endswith(f"{len(files) - 1} files")

    with pytest.raises(ModelError, match=f"is number 1 of the {len(files) - 1} files of a model: give local-dir:"):
        load_model(str(files[0]))

    files[1].rename(tmp_path / "away")
    with pytest.raises(ModelError, match=f"{files[1].name} is not beside it: fetch all of them"):
        load_model(f"local-dir:{folder}")
    (tmp_path / "away").rename(files[1])
    files[-1].rename(tmp_path / "index")
    with pytest.raises(ModelError, match="fetch all of them and their index"):
        load_model(f"local-dir:{folder}")


def test_the_index_itself_and_one_that_is_damaged(architecture: str, vit_state: State, tmp_path: Path) -> None:
    files = write_shards(vit_state, tmp_path, "model.safetensors")
    spec = f"{architecture}:{files[-1]}"
    loaded = load_model(spec)
    assert all(torch.equal(tensor, loaded.model.state_dict()[key]) for key, tensor in vit_state.items())
    index = json.loads(files[-1].read_text())
    first = {**index["weight_map"], "text_projection": "../model.safetensors"}
    for content, part in (
        ({}, 'has no "weight_map"'),
        ({"weight_map": first}, "names files in other folders"),
        ({"weight_map": {**index["weight_map"], "more.weight": files[0].name}}, "lacks more.weight, which"),
    ):
        files[-1].write_text(json.dumps(content))
        with pytest.raises(ModelError) as caught:
            load_model(spec)
        assert part in str(caught.value)
    files[-1].unlink()
    with pytest.raises(ModelError, match="No weight file"):
        load_model(str(files[-1]))


@pytest.mark.parametrize(("kind", "name"), [("hf", "pytorch_model.bin"), ("open_clip", "open_clip_model.safetensors")])
def test_from_the_hubs_cache(
    kind: str, name: str, model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "hub" / "models--org--repo"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    (root / "snapshots").mkdir()
    folder, state = folder_of(kind, model_folder("vit"), root / "snapshots" / "0123abc")
    files = write_shards(state, folder, name)
    if kind == "hf":  # as transformers 5 writes it
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").unlink()
        settings = {"image_processor": {**settings, "image_mean": [0.25] * 3}, "processor_class": "CLIPProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(settings))
    loaded = load_model("hf-hub:org/repo")
    expected = state_of(reference_model(model_folder("vit")))
    assert all(torch.equal(tensor, loaded.model.state_dict()[key]) for key, tensor in expected.items())
    assert files[-1].name in loaded.info.weights
    if kind == "hf":
        assert loaded.info.mean == (0.25,) * 3
    files[0].unlink()
    with pytest.raises(ModelError, match="not in the local cache"):
        load_model("hf-hub:org/repo")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_another_size_than_the_index_says_is_told_and_no_error(
    name: str, model_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Published indexes may be of before a conversion; files that are cut are refused all the same."""
    folder, state = folder_of("hf", model_folder("vit"), tmp_path / "model")
    *files, index = write_shards(state, folder, name)
    spec = f"local-dir:{folder}"
    expected = load_model(spec).tower_sha256
    content = json.loads(index.read_text())
    size = content["metadata"]["total_size"]
    assert size == sum(tensor.nbytes for tensor in state.values())
    with caplog.at_level(logging.WARNING, "clipguard"):
        for metadata in ({}, {"total_size": None}, {"total_size": size, "total_parameters": 1}, [], None):
            index.write_text(json.dumps({**content, "metadata": metadata}))
            assert load_model(spec).tower_sha256 == expected
    assert "of its files take" not in caplog.text

    index.write_text(json.dumps({**content, "metadata": {"total_size": size // 2}}))
    with caplog.at_level(logging.WARNING, "clipguard"):
        assert load_model(spec).tower_sha256 == expected
    (line,) = [record.getMessage() for record in caplog.records if "of its files take" in record.getMessage()]
    assert line.startswith(f"{index} says that the tensors of its files take {size // 2:,} bytes, and they")

    whole = files[-1].read_bytes()
    files[-1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is corrupt, truncated or not a"):
        load_model(spec)
