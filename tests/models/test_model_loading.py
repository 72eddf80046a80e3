"""Folders and files of every family load, describe themselves, and broken configs are explained."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import CONFIGS, write_config

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.checkpoint.reader import hash_file

FAMILIES = ["vit", "vit-quick", "vit-wide", "resnet", "timm", "siglip", "coca"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_describes_itself(family: str, model_folder: Callable[[str], Path]) -> None:
    folder = model_folder(family)
    loaded = load_model(f"local-dir:{folder}")
    info = loaded.info
    assert json.loads(json.dumps(info.to_dict())) == info.to_dict()
    assert info.sha256 == hash_file(folder / "open_clip_model.safetensors")
    assert info.architecture == f"open_clip_config.json of {folder}"
    vision = CONFIGS[family]["vision_cfg"]
    own = "QuickGELU" if family == "vit-quick" else "GELU"
    assert info.activation == vision.get("timm_model_name", own)
    size = vision["image_size"]
    assert info.image_size == (tuple(size) if isinstance(size, list) else (size, size))
    assert info.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert info.logit_bias == (-10.0 if family == "siglip" else None)
    assert 0 < info.image_parameters < info.parameters
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())


def test_nothing_is_printed_or_left_behind_in_logging(
    model_folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    load_model(f"local-dir:{model_folder('vit')}")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert list(logging.root.handlers) == handlers
    assert logging.root.manager.disable == disabled
    assert not recwarn.list


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "module.", "half", "safetensors", "bfloat16"])
def test_architecture_with_a_file(
    wrap: str, architecture: str, vit_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = dict(vit_state)
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pt")
    if wrap in ("half", "bfloat16"):
        state = {name: t.to(getattr(torch, "float16" if wrap == "half" else wrap)) for name, t in state.items()}
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "module.":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if wrap == "state_dict" else state, path)
    loaded = load_model(f"{architecture}:{path}")
    assert loaded.info.architecture == architecture
    assert loaded.info.weights == str(path)
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float()), name


def test_old_flat_text_names_fit_a_custom_text_model(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """open_clip's older checkpoints keep the text tower at the top level; only the names differ."""
    folder = tmp_path / "siglip"
    shutil.copytree(model_folder("siglip"), folder)
    file = folder / "open_clip_model.safetensors"
    state = load_model(f"local-dir:{folder}").model.state_dict()
    file.unlink()
    save_file({name.removeprefix("text."): t.clone() for name, t in state.items()}, file)
    loaded = load_model(f"local-dir:{folder}")
    assert all(torch.equal(t, state[name]) for name, t in loaded.model.state_dict().items())


def test_weight_file_preference_and_ambiguity(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = model_folder("vit") / "open_clip_model.safetensors"
    folder = write_config(tmp_path / "m", "vit")
    shutil.copy(source, folder / "b.safetensors")
    assert load_model(f"local-dir:{folder}").info.weights.endswith("b.safetensors")
    (folder / "a.pth").write_bytes(b"")
    with pytest.raises(ModelError, match=r"several weight files \(a.pth, b.safetensors\)"):
        load_model(f"local-dir:{folder}")
    shutil.copy(source, folder / "model.safetensors")
    assert load_model(f"local-dir:{folder}").info.weights.endswith("m/model.safetensors")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("{not json", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ("{}", 'has no "model_cfg"'),
        ('{"model_cfg": 3}', 'has no "model_cfg"'),
        ({"vision_cfg": {}, "text_cfg": {}}, '"embed_dim" in model_cfg must be a positive whole number, not None'),
        ({"embed_dim": 16, "text_cfg": {}}, 'no "vision_cfg"'),
        ({"embed_dim": 16, "vision_cfg": {}, "text_cfg": 1}, 'no "text_cfg"'),
        ({**CONFIGS["vit"], "vision_cfg": {"pach_size": 8}}, "open_clip cannot build .*pach_size"),
        ({**CONFIGS["vit"], "vision_cfg": {"timm_model_name": "no_such_net"}}, "open_clip cannot build .*no_such_net"),
        ({**CONFIGS["vit"], "text_cfg": {**CONFIGS["vit"]["text_cfg"], "vocab_size": 100}}, "vocabulary of 100"),
    ],
)
def test_bad_configs(config: str | dict[str, object], part: str, tmp_path: Path) -> None:
    text = config if isinstance(config, str) else json.dumps({"model_cfg": config})
    (tmp_path / "open_clip_config.json").write_text(text)
    (tmp_path / "open_clip_model.safetensors").touch()
    with pytest.raises(ModelError, match=part):
        load_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"mean": [0.5, 0.5]}, '"mean" must be three numbers'),
        ({"std": [0.5, 0.0, 0.5]}, '"std" must be three numbers above 0'),
        ({"interpolation": "lanczos"}, '"interpolation" must be one of bicubic, bilinear'),
        ({"resize_mode": "stretch"}, '"resize_mode" must be one of shortest, longest, squash'),
        ({"mode": "L"}, '"mode" must be "RGB"'),
    ],
)
def test_bad_preprocessing(change: dict[str, object], part: str, tmp_path: Path) -> None:
    write_config(tmp_path, "vit", **change)
    (tmp_path / "open_clip_model.safetensors").touch()
    with pytest.raises(ModelError, match=part):
        load_model(f"local-dir:{tmp_path}")


def test_folders_without_config_or_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no open_clip_config.json.*ARCH:path/to/weights.pt"):
        load_model(f"local-dir:{tmp_path}")
    write_config(tmp_path, "vit")
    with pytest.raises(ModelError, match=r"has no weight file: put open_clip_model.safetensors"):
        load_model(f"local-dir:{tmp_path}")


def test_preprocess_is_open_clips_without_normalisation(model_folder: Callable[[str], Path]) -> None:
    loaded = load_model(f"local-dir:{model_folder('vit')}")
    image = Image.effect_noise((70, 50), 80).convert("RGB")
    pixels = pickle.loads(pickle.dumps(loaded.preprocess()))(image)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() < pixels.max() <= 1
    from open_clip.transform import PreprocessCfg, image_transform_v2

    full = image_transform_v2(PreprocessCfg(**loaded.model.visual.preprocess_cfg), is_train=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.info.mean, loaded.info.std))
    torch.testing.assert_close((pixels - mean) / std, full(image))
    native = pickle.loads(pickle.dumps(loaded.preprocess("native")))(image.convert("P"))
    assert native.shape == (3, 50, 70)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = {**CONFIGS["vit"], "text_cfg": {**CONFIGS["vit"]["text_cfg"], "hf_tokenizer_name": "org/tokenizer"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (tmp_path / "open_clip_model.safetensors").touch()
    with pytest.raises(ModelError, match="needs the transformers package: pip install transformers"):
        load_model(f"local-dir:{tmp_path}")


def test_quick_gelu_as_a_text(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """As the configs of chs20/fare4-clip and its like have it."""
    folder = tmp_path / "fare4"
    shutil.copytree(model_folder("vit-quick"), folder)
    path = folder / "open_clip_config.json"
    path.write_text(path.read_text().replace('"quick_gelu": true', '"quick_gelu": "TRUE"'))
    assert '"TRUE"' in path.read_text()
    loaded, plain = load_model(f"local-dir:{folder}"), load_model(f"local-dir:{model_folder('vit-quick')}")
    assert loaded.info.activation == "QuickGELU"
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.model.encode_image(pixels), plain.model.encode_image(pixels))
