"""Hub names: quick, helpful failure without a network, and cached files that still work there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoint_files import save_bare, save_tecoa, tuned_model
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from open_clip import factory, pretrained
from safetensors.torch import save_file
from tiny_models import CONFIGS, state_of

from clipguard.core.environment import hub_access as hub
from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.convert import convert_files
from clipguard.models.inspection import inspect_model
from clipguard.models.text.tuned import TEXT_FILE, LaatMap


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub address where nobody listens, and an empty cache; returns the cache."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return cache


def fill_cache(cache: Path, repository: str, folder: Path) -> None:
    """Put a model folder into the hub's cache layout, as a download would."""
    root = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / "0123abc")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abc")


@pytest.mark.parametrize(
    ("spec", "local"),
    [
        ("ViT-B-32-quickgelu:openai", "ViT-B-32-quickgelu:/path/to/weights.pt or local-dir:/path"),
        ("hf-hub:chs20/fare2-clip", "local-dir:/path/to/folder"),
    ],
)
def test_without_a_network_the_message_names_a_local_alternative(spec: str, local: str, no_network: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match="not in the local cache") as caught:
        load_model(spec)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert local in message
    assert str(no_network) in message
    assert "\n" not in message
    assert constants.HF_HUB_OFFLINE is False


def test_the_hub_is_asked_before_open_clip_is_imported() -> None:
    code = "from clipguard.core.environment.hub_access import hub_access; hub_access().__enter__()"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


@pytest.mark.usefixtures("no_network")
def test_a_network_that_swallows_packets_costs_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(*_: object, **__: object) -> None:
        time.sleep(3)
        raise TimeoutError

    monkeypatch.setattr(hub.socket, "create_connection", silence)
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.2)
    start = time.monotonic()
    assert not hub.hub_reachable()
    assert time.monotonic() - start < 2


@pytest.fixture
def refusing_proxy() -> Iterator[str]:
    """The address of a proxy that answers everything with 403, as a locked-down network does."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # the server is closed at the end of the test
            while True:
                client, _ = server.accept()
                with client:
                    if client.recv(4096):
                        client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.close()


@pytest.mark.parametrize("variable", ["https_proxy", "all_proxy"])
def test_behind_a_proxy_it_is_the_proxy_that_must_answer(
    variable: str, no_network: Path, refusing_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    assert no_network
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.2:9")
    assert not hub.hub_reachable()
    monkeypatch.setenv(variable, refusing_proxy)
    assert hub.hub_reachable()
    monkeypatch.setenv("no_proxy", "127.0.0.2")
    assert not hub.hub_reachable()
    monkeypatch.delenv("no_proxy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.hub_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert not hub.hub_reachable()


def test_a_cached_repository_loads_without_a_network(no_network: Path, model_folder: Callable[[str], Path]) -> None:
    fill_cache(no_network, "org/repo", model_folder("vit"))
    loaded = load_model("hf-hub:org/repo")
    assert loaded.info.weights == "hf-hub:org/repo@0123abc/open_clip_model.safetensors"
    assert loaded.info.architecture == "open_clip_config.json of hf-hub:org/repo"
    local = load_model(f"local-dir:{model_folder('vit')}")
    assert loaded.info.sha256 == local.info.sha256


def test_a_cached_transformers_repository_loads(
    no_network: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    local = load_model(f"local-dir:{model_folder('vit-quick')}")
    for name, content in convert_files(local, "hf").items():
        (tmp_path / "clip").mkdir(exist_ok=True)
        (tmp_path / "clip" / name).write_bytes(content)
    fill_cache(no_network, "org/clip", tmp_path / "clip")
    loaded = load_model("hf-hub:org/clip")
    assert loaded.info.architecture == "config.json of hf-hub:org/clip"
    assert loaded.info.activation == "QuickGELU"
    expected = local.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())


def test_a_published_model_by_name(no_network: Path, model_folder: Callable[[str], Path]) -> None:
    """Its config says nothing of an activation, and it was tuned from OpenAI's weights."""
    fill_cache(no_network, "chs20/fare4-clip", model_folder("vit"))
    for spec in ("fare4-vitl14", "hf-hub:chs20/fare4-clip"):
        info = load_model(spec).info
        assert (info.name, info.activation) == (spec, "QuickGELU")
        assert "fare4-vitl14 was tuned from OpenAI's weights" in info.detected[0]
    fill_cache(no_network, "chs20/FARE4-ViT-B-32-laion2B-s34B-b79K", model_folder("vit"))
    assert load_model("fare4-vitb32-laion2b").info.activation == "GELU"


def test_a_file_of_a_repository(
    no_network: Path, model_folder: Callable[[str], Path], architecture: str, tmp_path: Path
) -> None:
    """A tower, a whole model and one in several files, in a folder of the repository or not."""
    base, files = model_folder("vit-quick"), tmp_path / "files"
    (files / "sub").mkdir(parents=True)
    model = tuned_model(base)
    save_bare(model, files / "simclip4.pt")
    state = state_of(model)
    names = list(state)
    save_file({name: state[name] for name in names[:20]}, files / "sub" / "m-00001-of-00002.safetensors")
    save_file({name: state[name] for name in names[20:]}, files / "sub" / "m-00002-of-00002.safetensors")
    places = {name: f"m-0000{1 + (number >= 20)}-of-00002.safetensors" for number, name in enumerate(names)}
    (files / "sub" / "m.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    fill_cache(no_network, "org/towers", files)
    tower = "hf-hub:org/towers/simclip4.pt"
    whole = f"{architecture}-quickgelu:hf-hub:org/towers/sub/m.safetensors.index.json"
    for spec in (f"{tower}@local-dir:{base}", whole, f"{tower}@{whole}"):
        loaded = load_model(spec)
        assert loaded.info.name == spec
        assert all(torch.equal(t, state[f"visual.{n}"]) for n, t in loaded.model.visual.state_dict().items())
    assert "models--org--towers" in inspect_model(tower).path
    assert "name the model it was tuned from" in inspect_model(tower).needs
    for spec, part in (
        (tower, "holds an image tower alone"),
        ("hf-hub:org/towers/other.pt", "hf-hub:org/towers/other.pt is not in the local cache"),
        (
            "hf-hub:org/towers/README.md",
            "is no weight file of a hub repository: write hf-hub:organisation/repository/file",
        ),
        ("hf-hub:org/towers/../../etc/w.pt", "is no weight file of a hub repository"),
        (f"hf-hub:org/towers@{whole}", "hf-hub:org/towers is not in the local cache"),  # no adapter there
    ):
        with pytest.raises(ModelError, match=re.escape(part)):
            load_model(spec)


def test_a_published_file_by_name(
    no_network: Path, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the base that it belongs to, and another one if that is named."""
    base = model_folder("vit-quick")
    tower = tuned_model(base)
    (tmp_path / "files").mkdir()
    save_tecoa(tower, tmp_path / "files" / "CLIP-ViT-B-16_QTAFT_eps4.pt")  # its state_dict is the prompter's
    fill_cache(no_network, "futakw/clip-qt-aft", tmp_path / "files")
    monkeypatch.setattr(pretrained, "download_pretrained", lambda *_, **__: str(base / "open_clip_model.safetensors"))
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-16-quickgelu", CONFIGS["vit-quick"])
    loaded = load_model("qt-aft-vitb16")
    assert (loaded.info.base, loaded.info.activation) == ("ViT-B-16-quickgelu:openai", "QuickGELU")
    assert all(torch.equal(t, tower.visual.state_dict()[n]) for n, t in loaded.model.visual.state_dict().items())
    assert load_model(f"qt-aft-vitb16@local-dir:{base}").info.base == f"local-dir:{base}"


def test_the_text_files_of_a_repository_are_fetched_too(
    no_network: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, a model with tuned text would be scored with the original text, and nobody told."""
    fill_cache(no_network, "org/repo", model_folder("vit"))
    snapshot = no_network / "models--org--repo" / "snapshots" / "0123abc"
    present = [TEXT_FILE]

    def download(repository: str, name: str) -> str:
        assert repository == "org/repo"
        if name not in present:
            raise EntryNotFoundError(name)
        (snapshot / name).write_bytes(LaatMap(16).to_bytes())
        return str(snapshot / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_model("hf-hub:org/repo").info.text == f"tuned, by the laat map in {TEXT_FILE}"

    def fail(*_: str) -> str:
        raise TimeoutError("the hub is busy")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelError, match=r"Could not fetch clipguard_text.safetensors of hf-hub:org/repo .*busy"):
        load_model("hf-hub:org/repo")


def test_a_cached_tag_loads_without_a_network(
    no_network: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag that open_clip would download from a repository of ours."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "clipguard-test-tagged", CONFIGS["vit"])
    entry = pretrained._slpcfg(hf_hub="org/tagged/")  # its own mean, std and resize mode
    monkeypatch.setitem(pretrained._PRETRAINED, "clipguard-test-tagged", {"ours": entry})
    fill_cache(no_network, "org/tagged", model_folder("vit"))
    info = load_model("clipguard-test-tagged:ours").info
    assert info.weights == "ours (org/tagged/)"
    assert (info.mean, info.resize_mode) == ((0.5, 0.5, 0.5), "squash")

    cached = next(no_network.rglob("open_clip_model.safetensors"))
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.raises(ModelError, match="delete that file"):
        load_model("clipguard-test-tagged:ours")


def test_a_network_that_refuses_is_quoted(
    no_network: Path, refusing_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert no_network
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, f"http://{refusing_proxy}")
    with pytest.raises(ModelError, match=r"Could not fetch hf-hub:org/none .* check the name and your access"):
        load_model("hf-hub:org/none")
