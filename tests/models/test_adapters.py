"""LoRA adapters of peft: merged they compute base(x) + s B(A(x)), and what cannot be merged is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from open_clip import SimpleTokenizer
from safetensors.torch import save_file
from tiny_models import CONFIGS, PREPROCESS, reference_model, state_of
from tiny_models import TEXT as TEXT_CFG
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.convert import convert_files
from clipguard.models.inspection import inspect_model
from clipguard.models.loading import LoadedModel

Folder = Callable[[str], Path]
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = ["a cat", "a dog", "fire engine"]
VISION, TEXT = "vision_model.encoder.layers.1", "text_model.encoder.layers.0"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def low_rank(module: str, out: int, inside: int, rank: int = 4, root: str = "base_model.model.") -> dict[str, Tensor]:
    return {f"{root}{module}.lora_A.weight": noise(rank, inside), f"{root}{module}.lora_B.weight": noise(out, rank)}


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], name: str = "adapter_model.safetensors", **config: Any
) -> Path:
    """As peft's save_pretrained writes it; returns the folder."""
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / name) if name.endswith("safetensors") else torch.save(
        dict(tensors), folder / name
    )
    stated = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "fan_in_fan_out": True, **config}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    return folder


def features(model: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.encode_image(PIXELS), model.encode_text(SimpleTokenizer(context_length=16)(TEXTS))


def assert_same(loaded: LoadedModel, expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(features(loaded.model), expected, rtol=1e-4, atol=1e-5)


def add(module: nn.Module, tensors: Mapping[str, Tensor], name: str, scale: float) -> None:
    """Make a layer compute base(x) + s B(A(x))."""
    down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    module.register_forward_hook(lambda _, inputs, out: out + scale * F.linear(F.linear(inputs[0], down), up))


def refusal(spec: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def theirs(model_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ViT as transformers' CLIPModel."""
    folder = tmp_path_factory.mktemp("theirs")
    for name, content in convert_files(load_model(f"local-dir:{model_folder('vit-quick')}"), "hf").items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(("name", "rank_scaled"), [("adapter_model.safetensors", False), ("adapter_model.bin", True)])
def test_layers_of_transformers_clip(name: str, rank_scaled: bool, theirs: Path, tmp_path: Path) -> None:
    """In both towers, against transformers' own model with the two matrices beside its layers."""
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(theirs).eval()
    tensors, scale = {}, 6 / 2 if rank_scaled else 6 / 4
    for layer, width, inner in ((VISION, 32, 128), (TEXT, 16, 64)):
        for module, out, inside in (("self_attn.q_proj", width, width), ("self_attn.v_proj", width, width),
                                    ("self_attn.out_proj", width, width), ("mlp.fc1", inner, width)):  # fmt: skip
            made = low_rank(f"{layer}.{module}", out, inside)
            add(model.get_submodule(f"{layer}.{module}"), made, f"base_model.model.{layer}.{module}", scale)
            tensors |= made
    tokens = SimpleTokenizer(context_length=16)(TEXTS)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=PIXELS)
    folder = write_adapter(tmp_path / "lora", tensors, name, use_rslora=rank_scaled)
    loaded = load_model(f"{folder}@local-dir:{theirs}")
    image, text = features(loaded.model)
    torch.testing.assert_close(F.normalize(image), out.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(F.normalize(text), out.text_embeds, rtol=1e-4, atol=1e-5)
    base = features(load_model(f"local-dir:{theirs}").model)
    assert (F.normalize(base[0]) - out.image_embeds).abs().max() > 0.01
    assert loaded.info.format == "LoRA adapter (peft)"
    assert loaded.info.base == f"local-dir:{theirs}"
    assert loaded.info.detected == ("LoRA merged into 8 modules",)


def test_layers_of_open_clip_in_a_tower_or_the_whole_model(model_folder: Folder, tmp_path: Path) -> None:
    base = model_folder("vit")
    for root, where in (("base_model.model.visual.", "whole"), ("base_model.model.", "tower")):
        model, tensors = reference_model(base), {}
        for module, out, inside in (("mlp.c_fc", 128, 32), ("mlp.c_proj", 32, 128)):
            name = f"transformer.resblocks.0.{module}"
            tensors |= low_rank(name, out, inside, root=root)
            add(model.visual.get_submodule(name), tensors, f"{root}{name}", 6 / 4)
        down, up = noise(4, 3, 8, 8), noise(32, 4, 1, 1)
        tensors |= {f"{root}conv1.lora_A.weight": down, f"{root}conv1.lora_B.weight": up}
        beside = lambda _, inputs, out, a=down, b=up: out + 1.5 * F.conv2d(F.conv2d(inputs[0], a, stride=8), b)  # noqa: E731
        model.visual.conv1.register_forward_hook(beside)
        folder = write_adapter(tmp_path / where, tensors)
        assert_same(load_model(f"{folder}@local-dir:{base}"), features(model))


def test_attention_of_open_clip_as_peft_computes_it(model_folder: Folder, tmp_path: Path) -> None:
    """One pair of matrices for query, key and value, and one for the last layer, which peft adds twice."""
    base, root = model_folder("vit"), "base_model.model.visual.transformer.resblocks.1.attn"
    tensors = low_rank(root, 96, 32, root="") | low_rank(f"{root}.base_layer.out_proj", 32, 32, root="")
    model = reference_model(base)
    attention = model.visual.transformer.resblocks[1].attn
    with torch.no_grad():
        attention.in_proj_weight += 1.5 * tensors[f"{root}.lora_B.weight"] @ tensors[f"{root}.lora_A.weight"]
        out = f"{root}.base_layer.out_proj.lora_"
        attention.out_proj.weight += 2 * 1.5 * tensors[f"{out}B.weight"] @ tensors[f"{out}A.weight"]
    assert_same(load_model(f"{write_adapter(tmp_path / 'a', tensors)}@local-dir:{base}"), features(model))
    newer = write_adapter(tmp_path / "b", tensors, peft_version="0.22.0")
    assert "written by peft 0.22.0, and how that scales" in refusal(f"{newer}@local-dir:{base}")
    alone = write_adapter(tmp_path / "c", low_rank(f"{root}.out_proj", 32, 32, root=""))
    assert "which torch's attention never runs with an adapter" in refusal(f"{alone}@local-dir:{base}")


def test_ranks_and_scales_of_single_modules(theirs: Path, tmp_path: Path) -> None:
    query, inner = f"{VISION}.self_attn.q_proj", f"{VISION}.mlp.fc1"
    tensors = low_rank(query, 32, 32, rank=2) | low_rank(inner, 128, 32)
    patterns = {"rank_pattern": {"self_attn.q_proj": 2}, "alpha_pattern": {r".*layers\.[01]\.mlp\.fc1": 10}}
    folder = write_adapter(tmp_path / "lora", tensors, **patterns)
    got = load_model(f"{folder}@local-dir:{theirs}").model.visual.transformer.resblocks[1]
    base = load_model(f"local-dir:{theirs}").model.visual.transformer.resblocks[1]

    def product(name: str) -> Tensor:
        return tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"]

    moved = got.attn.in_proj_weight - base.attn.in_proj_weight
    torch.testing.assert_close(moved[:32], 6 / 2 * product(query), rtol=1e-4, atol=1e-5)
    assert torch.equal(moved[32:], torch.zeros(64, 32))
    torch.testing.assert_close(
        got.mlp.c_fc.weight - base.mlp.c_fc.weight, 10 / 4 * product(inner), rtol=1e-4, atol=1e-5
    )


def test_dora_scales_rows_to_learnt_lengths(model_folder: Folder, tmp_path: Path) -> None:
    base, name = model_folder("vit"), "visual.transformer.resblocks.0.mlp.c_fc"
    tensors, lengths = low_rank(name, 128, 32), torch.rand(128) + 0.5
    tensors[f"base_model.model.{name}.lora_magnitude_vector"] = lengths
    model = reference_model(base)
    weight = model.get_submodule(name).weight
    with torch.no_grad():
        up, down = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
        directions = F.normalize(weight + 1.5 * up @ down, dim=1)
        weight.copy_(lengths[:, None] * directions)
    folder = write_adapter(tmp_path / "dora", tensors, use_dora=True)
    assert_same(load_model(f"{folder}@local-dir:{base}"), features(model))
    write_adapter(folder, tensors)
    assert "has lengths of DoRA" in refusal(f"{folder}@local-dir:{base}")
    write_adapter(folder, low_rank(name, 128, 32), use_dora=True)
    assert "DoRA (use_dora) of" in refusal(f"{folder}@local-dir:{base}")


def test_embeddings_biases_and_modules_saved_whole(theirs: Path, tmp_path: Path) -> None:
    root, words = "base_model.model.", "text_model.embeddings.token_embedding"
    rows, up = torch.zeros(4, 49408), noise(16, 4)
    rows[:, 320] = 1.0  # of one token
    projection, bias = noise(16, 32), noise(32)
    tensors = low_rank(f"{VISION}.self_attn.q_proj", 32, 32) | {
        f"{root}{words}.lora_embedding_A": rows,
        f"{root}{words}.lora_embedding_B": up,
        f"{root}visual_projection.modules_to_save.weight": projection,
        f"{root}{VISION}.self_attn.q_proj.base_layer.bias": bias,
    }
    folder = write_adapter(tmp_path / "lora", tensors, modules_to_save=["visual_projection"], bias="lora_only")
    loaded, base = load_model(f"{folder}@local-dir:{theirs}"), load_model(f"local-dir:{theirs}")
    assert torch.equal(loaded.model.visual.proj, projection.T)
    assert torch.equal(loaded.model.visual.transformer.resblocks[1].attn.in_proj_bias[:32], bias)
    moved = loaded.model.token_embedding.weight - base.model.token_embedding.weight
    torch.testing.assert_close(moved[320], 1.5 * up.sum(1), rtol=1e-4, atol=1e-5)
    assert moved[:320].abs().max() == 0
    assert loaded.info.detected == ("LoRA merged into 2 modules, and 2 tensors whole",)


def test_nothing_learnt_is_the_base_itself(theirs: Path, tmp_path: Path) -> None:
    tensors = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in low_rank(f"{TEXT}.mlp.fc1", 64, 16).items()}
    folder = write_adapter(tmp_path / "lora", tensors)
    merged, base = (
        load_model(spec).model.state_dict() for spec in (f"{folder}@local-dir:{theirs}", f"local-dir:{theirs}")
    )
    assert all(torch.equal(tensor, base[name]) for name, tensor in merged.items())


def test_how_adapters_and_bases_are_named(
    theirs: Path, model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = low_rank(f"{VISION}.mlp.fc1", 128, 32)
    folder = write_adapter(tmp_path / "lora", tensors, base_model_name_or_path=str(theirs))
    expected = load_model(f"{folder}@local-dir:{theirs}")
    for spec in (str(folder), f"local-dir:{folder}", str(folder / "adapter_model.safetensors")):
        loaded = load_model(spec)
        assert loaded.tower_sha256 == expected.tower_sha256
        assert loaded.info.detected[0] == f"base: local-dir:{theirs}, as its adapter_config.json says"
    found = inspect_model(str(folder))
    assert (found.format, found.base, found.sha256) == (
        "LoRA adapter (peft)",
        f"local-dir:{theirs}",
        loaded.info.sha256,
    )
    assert found.command == f"clipguard bench --model {folder} --base local-dir:{theirs}"
    other = load_model(
        f"{folder}@local-dir:{model_folder('vit')}#normalization=imagenet"
    )  # a base of another activation
    assert (other.info.mean, other.info.activation) == ((0.485, 0.456, 0.406), "GELU")
    for content in convert_files(expected, "open_clip").items():
        (tmp_path / "merged").mkdir(exist_ok=True)
        (tmp_path / "merged" / content[0]).write_bytes(content[1])
    assert load_model(f"local-dir:{tmp_path / 'merged'}").tower_sha256 == expected.tower_sha256

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "hub" / "models--org--lora"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    shutil.copytree(folder, root / "snapshots" / "0123abc")
    assert load_model(f"hf-hub:org/lora@local-dir:{theirs}").tower_sha256 == expected.tower_sha256
    assert "not a model: name what it was trained on, as in hf-hub:org/lora@BASE" in refusal("hf-hub:org/lora")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"peft_type": "VERA"}, "peft_type VERA is not supported, only LORA: merge it where it was trained"),
        ({"peft_type": None}, "peft_type none is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changed the base's weights before training"),
        ({"lora_bias": True}, "lora_bias is not supported (True)"),
        ({"target_parameters": ["visual.proj"]}, "target_parameters is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"r": "four"}, "r must be a number, not 'four'"),
        ({"r": 0}, "ranks must be whole numbers above 0"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern '(' is no pattern"),
        ({"r": 8}, "has rank 4 in vision_model.encoder.layers.1.mlp.fc1, and its adapter_config.json says 8"),
    ],
)
def test_settings_that_cannot_be_merged(config: dict[str, Any], part: str, theirs: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", low_rank(f"{VISION}.mlp.fc1", 128, 32), **config)
    assert part in refusal(f"{folder}@local-dir:{theirs}")


def test_adapters_that_do_not_fit(theirs: Path, model_folder: Folder, tmp_path: Path) -> None:
    good, spec = low_rank(f"{VISION}.mlp.fc1", 128, 32), f"{tmp_path / 'lora'}@local-dir:{theirs}"
    named = {key.replace(".weight", ".first.weight"): value for key, value in good.items()}
    for tensors, part in (
        (low_rank("vision_model.encoder.layers.7.mlp.fc1", 128, 32), "layers.7.mlp.fc1 ([128, 32]) is no module of it"),
        (low_rank(f"{VISION}.mlp.fc1", 128, 48), "([128, 48]) is [128, 32]. Name the base it was trained on"),
        (good | {"base_model.model.classifier.weight": noise(3, 3)}, "classifier.weight ([3, 3]) is no tensor of it"),
        (named | {key.replace("first", "second"): value.clone() for key, value in named.items()}, "several adapters"),
        (good | {f"base_model.model.{VISION}.mlp.fc1.lora_E.weight": noise(4, 1)}, "is a part of LoRA that clipguard"),
        ({"base_model.model.visual_projection.weight": noise(16, 32)}, "has no matrices of LoRA"),
    ):
        write_adapter(tmp_path / "lora", tensors)
        assert part in refusal(spec), part
    write_adapter(tmp_path / "lora", good)
    assert "transformers' CLIPModel, which local-dir:" in refusal(
        f"{tmp_path / 'lora'}@local-dir:{model_folder('resnet')}"
    )
    assert "names no base model: name the model it was trained on" in refusal(str(tmp_path / "lora"))
    found = inspect_model(str(tmp_path / "lora"))
    assert "names no base model: name the model it was trained on" in found.needs
    assert (found.command, found.notes) == ("", ["LoRA merged into 1 modules"])
    assert "The base" in refusal(f"{tmp_path / 'lora'}@{tmp_path / 'lora'}")
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora.safetensors")
    assert "but no adapter_model.safetensors or adapter_model.bin: put it there" in refusal(spec)
    assert "adapter_config.json, which says how it is to be scaled, is not beside it" in refusal(
        str(tmp_path / "lora.safetensors")
    )


def test_one_that_fits_both_towers_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "even"
    folder.mkdir()
    config = {**CONFIGS["vit"], "text_cfg": {**TEXT_CFG, "width": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    save_file(state_of(reference_model(folder, load=False)), folder / "open_clip_model.safetensors")
    adapter = write_adapter(tmp_path / "lora", low_rank("transformer.resblocks.0.mlp.c_fc", 128, 32))
    assert "fits both towers of local-dir:" in refusal(f"{adapter}@local-dir:{folder}")
