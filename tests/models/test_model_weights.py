"""Weight files that must be refused, each with a message that names the cure, and the activation check."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.checkpoint import reader as weights
from clipguard.models.checkpoint.reader import Release, hash_file, known_releases

State = dict[str, torch.Tensor]


class RunsCode:
    """A pickle that creates a file when it is loaded carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def refusal(spec: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message  # torch's text advises to switch the protection off
    return message


@pytest.mark.parametrize("form", ["torch.save", "bare pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(form: str, architecture: str, tmp_path: Path) -> None:
    target, path = tmp_path / "pwned", tmp_path / "evil.pt"
    content = {"state_dict": RunsCode(target)}
    if form == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    message = refusal(f"{architecture}:{path}")
    assert "can run code" in message
    assert "save only the state_dict" in message
    assert form == "bare pickle" or "posix.system" in message
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_corrupt_files(damage: str, suffix: str, architecture: str, vit_state: State, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(vit_state, path)
    else:
        save_file(vit_state, path)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"<html>not found</html>"}[damage])
    message = refusal(f"{architecture}:{path}")
    parts = {"empty": "w is empty: fetch", "half": "corrupt, truncated or not a", "text": "is a web page"}
    assert parts[damage].replace("w is", f"w{suffix} is") in message
    assert str(path) in message


def test_contents_that_are_no_state_dict(architecture: str, vit_state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    visual = {k.removeprefix("visual."): v for k, v in vit_state.items() if k.startswith("visual.")}
    for content, part in (
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict"),
        ({"epoch": 1, "model": [vit_state]}, "epoch, model are not tensors"),
        ({"state_dict": {}, "args": 1}, "state_dict, args are not tensors"),
        (visual, "holds an image tower alone"),
    ):
        torch.save(content, path)
        assert part in refusal(f"{architecture}:{path}")


def test_every_difference_is_named(architecture: str, vit_state: State, tmp_path: Path) -> None:
    state, path = dict(vit_state), tmp_path / "w.pt"
    del state["ln_final.bias"]
    state["extra.weight"] = torch.zeros(2)
    state["visual.positional_embedding"] = torch.zeros(26, 32)  # a larger image: open_clip would interpolate
    torch.save(state, path)
    message = refusal(f"{architecture}:{path}")
    assert f"does not fit {architecture}" in message
    assert "1 missing: ln_final.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: visual.positional_embedding (file [26, 32], model [17, 32])" in message


def test_weights_of_another_architecture(architecture: str, model_folder: Callable[[str], Path]) -> None:
    message = refusal(f"{architecture}:{model_folder('resnet') / 'open_clip_model.safetensors'}")
    assert "missing" in message
    assert " more" in message
    assert "Name the architecture these weights were trained with" in message


def test_a_missing_logit_bias_is_not_filled_in(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    shutil.copytree(model_folder("siglip"), folder)
    state = load_model(f"local-dir:{folder}").model.state_dict()
    (folder / "open_clip_model.safetensors").unlink()
    save_file({k: v.clone() for k, v in state.items() if k != "logit_bias"}, folder / "open_clip_model.safetensors")
    assert "1 missing: logit_bias" in refusal(f"local-dir:{folder}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, architecture: str, vit_state: State, tmp_path: Path) -> None:
    state, path = dict(vit_state), tmp_path / "w.pt"
    state["visual.proj"] = torch.full_like(state["visual.proj"], value)
    torch.save(state, path)
    assert "NaN or infinite weights in visual.proj" in refusal(f"{architecture}:{path}")


def test_a_logit_scale_that_overflows(architecture: str, vit_state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({**vit_state, "logit_scale": torch.tensor(100.0)}, path)
    assert "logit scale" in refusal(f"{architecture}:{path}")


# --- QuickGELU ---------------------------------------------------------------------------------------------------


def openai_dtypes(state: State) -> State:
    full = ("ln_", "embedding", "logit_scale")
    return {name: t if any(part in name for part in full) else t.half() for name, t in state.items()}


@pytest.mark.parametrize("mark", ["metadata", "dtypes", "name"])
def test_openai_files_need_the_quickgelu_architecture(
    mark: str, architecture: str, vit_state: State, tmp_path: Path
) -> None:
    path = tmp_path / ("ViT-openai.pt" if mark == "name" else "w.pt")
    state = openai_dtypes(vit_state) if mark == "dtypes" else dict(vit_state)
    if mark == "metadata":
        state |= {k: torch.tensor(1) for k in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state, path)
    message = refusal(f"{architecture}:{path}")
    assert "was trained with QuickGELU" in message
    assert f"use {architecture}-quickgelu:{path}" in message
    assert {"metadata": "input_resolution", "dtypes": "float16", "name": "file name"}[mark] in message
    assert load_model(f"{architecture}-quickgelu:{path}").info.activation == "QuickGELU"


def test_known_releases_hold_openais_hashes() -> None:
    release = next(r for r in known_releases() if r.hash_prefix.startswith("40d365715913c9da98579312b702a82c"))
    assert (release.name, release.quick_gelu, len(release.hash_prefix)) == ("ViT-B-32:openai", True, 64)
    assert any(not r.quick_gelu for r in known_releases())


@pytest.mark.parametrize("quick", [True, False])
def test_a_published_hash_decides_both_ways(
    quick: bool, architecture: str, vit_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pt"
    torch.save(vit_state, path)
    release = Release("ViT-X:tag", hash_file(path)[:8], quick)
    monkeypatch.setattr(weights, "known_releases", lambda: (release,))
    wrong, right = architecture, f"{architecture}-quickgelu"
    if not quick:
        wrong, right = right, wrong
    message = refusal(f"{wrong}:{path}")
    assert "SHA-256 is that of the published ViT-X:tag" in message
    assert f"use {right}:{path}." in message
    load_model(f"{right}:{path}")


def test_a_folder_that_states_its_activation_is_believed(
    vit_state: State, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model_folder("vit"), folder)
    (folder / "open_clip_model.safetensors").unlink()
    save_file(openai_dtypes(vit_state), folder / "open_clip_model.safetensors")
    assert 'put "quick_gelu": true into model_cfg' in refusal(f"local-dir:{folder}")
    config = json.loads((folder / "open_clip_config.json").read_text())
    for stated, activation in ((True, "QuickGELU"), (False, "GELU")):
        config["model_cfg"]["quick_gelu"] = stated
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        assert load_model(f"local-dir:{folder}").info.activation == activation


class Holder(torch.nn.Module):
    """Any module, to be saved as TorchScript the way OpenAI saved CLIP."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            parent: torch.nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.register_buffer(leaf, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(state: State, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Holder(state), torch.zeros(1)), path)


def test_torchscript_is_read_as_data_and_counts_as_openais(
    architecture: str, vit_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ViT.pt"
    save_torchscript(vit_state | {"input_resolution": torch.tensor(32)}, path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the archive was loaded as a program")

    monkeypatch.setattr(torch.jit, "load", never)
    assert f"use {architecture}-quickgelu:{path}" in refusal(f"{architecture}:{path}")
    loaded = load_model(f"{architecture}-quickgelu:{path}")
    assert all(torch.equal(tensor, vit_state[name]) for name, tensor in loaded.model.state_dict().items())
    path.write_bytes(path.read_bytes()[:-1000])
    assert "corrupt, truncated" in refusal(f"{architecture}-quickgelu:{path}")


def test_an_unreadable_file(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    subprocess.run(["mkfifo", str(path)], check=True)
    assert "No weight file" in refusal(f"{architecture}:{path}")
