"""Files that are not what their names say: read by content, or said what they are with the cure."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file
from tiny_models import reference_model, state_of

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.inspection import inspect_model

State = dict[str, torch.Tensor]
Folder = Callable[[str], Path]
PAGE = b"\n  <!DOCTYPE html><html><title>Sign in</title></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 605157884\n"


def _tar(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("model.pt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _zip(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.pt", content)
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(3))
    return stream.getvalue()


FILES = {
    "page": (PAGE, "a web page"),
    "error page": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    "pointer": (POINTER, "a Git LFS pointer, not the file itself: run git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s605157884--00.pt\n", "git annex get"),
    "json": (b'{"error": "Repository not found"}', "JSON text, not weights"),
    "gzip": (gzip.compress(b"weights"), "a gzip archive: unpack it"),
    "tar": (_tar(b"weights"), "a tar archive: unpack it"),
    "zip": (_zip(b"weights"), "a zip archive (model.pt) without PyTorch's data.pkl: unpack it"),
    "npz": (_npz(), "a numpy archive (.npz)"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file (llama.cpp): give the PyTorch or safetensors"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(64), "an ONNX model: give the PyTorch or safetensors"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ".pth.tar"])
@pytest.mark.parametrize("kind", FILES)
def test_what_a_weight_file_is_instead(kind: str, suffix: str, tmp_path: Path) -> None:
    content, part = FILES[kind]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    for read in (load_model, inspect_model):
        with pytest.raises(ModelError) as caught:
            read(f"ViT-B-32:{path}")
        assert f"{path} is {part}" in str(caught.value) or part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "corrupt" not in str(caught.value)


@pytest.mark.parametrize("name", ["open_clip_config.json", "config.json", "preprocessor_config.json", "weights"])
@pytest.mark.parametrize("content", [PAGE, POINTER, b""])
def test_what_a_file_of_a_folder_is_instead(content: bytes, name: str, model_folder: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("vit"), tmp_path / "model")
    if name == "weights":
        name = "open_clip_model.safetensors"
    elif name != "open_clip_config.json":
        (folder / "open_clip_config.json").unlink()
        text = {"vision_config": {"image_size": 32}, "model_type": "clip"}
        (folder / "config.json").write_text(json.dumps(text))
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(f"local-dir:{folder}")
    what = "a web page" if content == PAGE else "run git lfs pull" if content else "empty"
    assert str(folder / name) in str(caught.value)
    assert what in str(caught.value)


def test_the_format_is_told_by_the_content(architecture: str, vit_state: State, tmp_path: Path) -> None:
    torch.save(vit_state, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.pth.tar", "a.bin", "a.ckpt"):
        save_file(vit_state, tmp_path / name)
    torch.save(vit_state, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        loaded = load_model(f"{architecture}:{path}").model.state_dict()
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in vit_state.items()), path
    assert inspect_model(str(tmp_path / "a.pt")).container == "safetensors"
    assert inspect_model(str(tmp_path / "a.safetensors")).container == "torch.save"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files_say_so_under_either_name(suffix: str, vit_state: State, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(vit_state, stream)
    for content in (stream.getvalue(), save(vit_state)):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelError, match="corrupt, truncated or not a"):
            load_model(f"ViT-B-32:{path}")


def write_adapter(folder: Path, name: str = "adapter_model.safetensors") -> Path:
    """As peft's save_pretrained writes a LoRA of transformers' CLIP."""
    folder.mkdir()
    layer = "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj"
    state = {f"{layer}.lora_A.weight": torch.zeros(4, 32), f"{layer}.lora_B.weight": torch.zeros(32, 4)}
    save_file(state, folder / name) if name.endswith("safetensors") else torch.save(state, folder / name)
    config = {"peft_type": "LORA", "base_model_name_or_path": "openai/clip-vit-base-patch32", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


def test_an_adapter_alone_is_called_one(model_folder: Folder, tmp_path: Path) -> None:
    """Without its config; `test_adapters.py` has those that load."""
    path = write_adapter(tmp_path / "lora", "lora.pt")
    (tmp_path / "lora" / "adapter_config.json").unlink()
    part = "is an adapter for another model (LoRA), not a model"
    for spec in (str(path), f"ViT-B-32:{path}", f"{path}@local-dir:{model_folder('vit')}"):
        with pytest.raises(ModelError, match="is an adapter for another model"):
            load_model(spec)
    found = inspect_model(str(path))
    assert (found.format, found.towers, found.architectures) == ("LoRA adapter (peft)", [], [])
    assert part in found.needs
    assert found.command == ""
    # In a folder with a config, whose loader must not take it for the model either.
    shutil.copy(model_folder("vit") / "open_clip_config.json", tmp_path / "lora")
    with pytest.raises(ModelError, match=r"is not beside it: put it there"):
        load_model(f"local-dir:{tmp_path / 'lora'}")


def test_inspect_of_a_weight_file_beside_its_config_names_the_folder(
    model_folder: Folder, architecture: str, tmp_path: Path
) -> None:
    folder = model_folder("vit-quick")
    found = inspect_model(str(folder / "open_clip_model.safetensors"))
    assert (found.command, found.needs) == (f"clipguard bench --model local-dir:{folder}", "")
    assert found.activation == "QuickGELU"
    state = state_of(reference_model(folder))
    loaded = load_model(found.command.removeprefix("clipguard bench --model "))
    assert torch.equal(loaded.model.state_dict()["ln_final.bias"], state["ln_final.bias"])
    with pytest.raises(ModelError, match=f"{architecture}-quickgelu:.* Or give local-dir:{folder}: the config there"):
        load_model(str(folder / "open_clip_model.safetensors"))
    # Beside a config of something else, or another weight file, nothing is known of it.
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "open_clip_model.safetensors", alone / "w.safetensors")
    (alone / "config.json").write_text('{"model_type": "bert"}')
    assert "local-dir" not in inspect_model(str(alone / "w.safetensors")).needs
    assert load_file(alone / "w.safetensors").keys() == state.keys()


def test_an_adapter_on_the_hub_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "hub" / "models--org--lora"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    (root / "snapshots").mkdir()
    write_adapter(root / "snapshots" / "0123abc")
    with pytest.raises(ModelError, match="as in hf-hub:org/lora@hf-hub:openai/clip-vit-base-patch32"):
        load_model("hf-hub:org/lora")
