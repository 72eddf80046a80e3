"""Hugging Face CLIPModel folders: read with transformers' own numbers, written so that transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import NAMES, TEMPLATE, tuned_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import write_model

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.convert import convert_files
from clipguard.models.export import checkpoint_files

transformers = pytest.importorskip("transformers")
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SIZES = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def their_logits(folder: Path, mean: tuple[float, ...], std: tuple[float, ...], tokens: torch.Tensor) -> torch.Tensor:
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels = (PIXELS - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, pixel_values=pixels).logits_per_image
    return logits


@pytest.fixture(params=["quick_gelu", "gelu"])
def clip_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """As `CLIPModel.save_pretrained` writes it."""
    torch.manual_seed(0)
    act = {"hidden_act": request.param}
    config = transformers.CLIPConfig(
        text_config={**SIZES, **act, "max_position_embeddings": 16, "projection_dim": 24},
        vision_config={**SIZES, **act, "image_size": 32, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.constant_(model.logit_scale, 3.0)
    model.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_computes_what_transformers_computes(weights: str, clip_folder: Path) -> None:
    if weights == "pytorch_model.bin":
        torch.save(load_file(clip_folder / "model.safetensors"), clip_folder / weights)
        (clip_folder / "model.safetensors").rename(clip_folder.parent / "model.safetensors")
    loaded = load_model(f"local-dir:{clip_folder}")
    if weights == "pytorch_model.bin":
        (clip_folder.parent / "model.safetensors").rename(clip_folder / "model.safetensors")
    config = json.loads((clip_folder / "config.json").read_text())
    quick = config["vision_config"]["hidden_act"] == "quick_gelu"
    assert loaded.info.activation == ("QuickGELU" if quick else "GELU")
    assert loaded.info.architecture == f"config.json of {clip_folder}"
    assert loaded.info.format == "Hugging Face CLIPModel"
    tokens = loaded.tokenizer([TEMPLATE.format(name) for name in NAMES])
    tokens[tokens == 0] = 49407  # transformers pads with the end token
    expected = their_logits(clip_folder, loaded.info.mean, loaded.info.std, tokens)
    torch.testing.assert_close(loaded.classifier(NAMES, [TEMPLATE])(PIXELS), expected, rtol=1e-5, atol=1e-4)


def test_round_trip_from_transformers_is_exact(clip_folder: Path, tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", convert_files(load_model(f"local-dir:{clip_folder}"), "open_clip"))
    theirs = write(tmp_path / "theirs", convert_files(load_model(f"local-dir:{ours}"), "hf"))
    before, after = (load_file(folder / "model.safetensors") for folder in (clip_folder, theirs))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    reread = transformers.CLIPConfig.from_pretrained(theirs)
    original = transformers.CLIPConfig.from_pretrained(clip_folder)
    for part in ("vision_config", "text_config"):
        first, second = (getattr(config, part).to_dict() for config in (original, reread))
        assert {k: second[k] for k in (*SIZES, "hidden_act", "layer_norm_eps")} == {
            k: first[k] for k in (*SIZES, "hidden_act", "layer_norm_eps")
        }


@pytest.mark.parametrize("family", ["vit", "vit-quick"])
def test_written_folders_work_in_transformers(family: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(f"local-dir:{model_folder(family)}")
    loaded.model.visual = tuned_model(model_folder(family)).visual
    folder = write(tmp_path / "hf", convert_files(loaded, "hf"))
    prompts = [TEMPLATE.format(name) for name in [*NAMES, "café's 12 naïve   dogs"]]
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt").input_ids
    own = loaded.tokenizer(prompts)
    assert [[t for t in row if t not in (0, 49407)] for row in own.tolist()] == [
        [t for t in row if t != 49407] for row in tokens.tolist()
    ]
    expected = their_logits(folder, loaded.info.mean, loaded.info.std, tokens[:3])
    torch.testing.assert_close(loaded.classifier(NAMES, [TEMPLATE])(PIXELS), expected, rtol=1e-5, atol=1e-4)
    image = Image.effect_noise((70, 50), 80).convert("RGB")
    theirs = transformers.CLIPImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values[0]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (loaded.info.mean, loaded.info.std))
    torch.testing.assert_close(theirs, (loaded.preprocess()(image) - mean) / std, rtol=0, atol=0.05)
    back = checkpoint_files(load_model(f"local-dir:{folder}"), load_model(f"local-dir:{folder}").model.state_dict())
    assert (
        back["open_clip_model.safetensors"]
        == checkpoint_files(loaded, loaded.model.state_dict())["open_clip_model.safetensors"]
    )


@pytest.mark.parametrize(
    ("family", "reason"), [("resnet", "another image tower"), ("timm", "timm_model_name"), ("coca", "attentional_pool")]
)
def test_models_that_transformers_cannot_hold(family: str, reason: str, model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=f"no counterpart in transformers' CLIPModel .{reason}.*without `to=hf`"):
        convert_files(load_model(f"local-dir:{model_folder(family)}"), "hf")


def test_another_resize_mode_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Resizing the longest edge"):
        convert_files(load_model(f"local-dir:{write_model(tmp_path, 'vit', resize_mode='longest')}"), "hf")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_folders(clip_folder: Path) -> None:
    weights, config = clip_folder / "model.safetensors", clip_folder / "config.json"
    state, text = load_file(weights), config.read_text()
    name = "vision_model.encoder.layers.0.self_attn.k_proj.bias"
    twins = (
        ({k: v for k, v in state.items() if k != name}, f"lacks {name}"),
        ({k: v for k, v in state.items() if k != "visual_projection.weight"}, "1 missing: visual.proj"),
        ({**state, "vision_model.post_layernorm.extra": torch.zeros(1)}, "unexpected: vision_model.post_layernorm"),
        ({**state, "visual_projection.weight": torch.zeros(25, 32)}, "visual.proj (file [32, 25], model [32, 24])"),
    )
    for tensors, part in twins:
        weights.unlink()
        save_file(tensors, weights)
        with pytest.raises(ModelError) as caught:
            load_model(f"local-dir:{clip_folder}")
        assert part in str(caught.value)
    for changes, part in (
        ({"model_type": "siglip"}, "describes 'siglip', not a CLIPModel"),
        ({"text_config": {**json.loads(text)["text_config"], "vocab_size": 100}}, "CLIP's vocabulary"),
        ({"text_config": {**json.loads(text)["text_config"], "hidden_act": "relu"}}, "has activations"),
    ):
        config.write_text(text)
        edit(config, **changes)
        with pytest.raises(ModelError) as caught:
            load_model(f"local-dir:{clip_folder}")
        assert part in str(caught.value)
