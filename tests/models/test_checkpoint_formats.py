"""Every published layout loads to the logits of the model it came from, and its damaged twin is an error."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import NAMES, TEMPLATE, TOWERS, WHOLES, logits_of, save_bare, save_tecoa, tuned_model, visual
from open_clip import factory, pretrained
from tiny_models import state_of

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.checkpoint.architecture import find_architectures, outline
from clipguard.models.checkpoint.contents import find_contents
from clipguard.models.checkpoint.reader import WeightFile, hash_file
from clipguard.models.checkpoint.transformers import to_transformers
from clipguard.models.loading import LoadedModel

PIXELS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
Folder = Callable[[str], Path]


def refusal(spec: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_computes(loaded: LoadedModel, model: torch.nn.Module) -> None:
    expected = logits_of(model, loaded.info.mean, loaded.info.std, PIXELS)
    torch.testing.assert_close(loaded.classifier(NAMES, [TEMPLATE])(PIXELS), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", TOWERS)
def test_an_image_tower_on_its_base(layout: str, model_folder: Folder, tmp_path: Path) -> None:
    base, path = model_folder("vit-quick"), tmp_path / "tuned.pth.tar"
    model = tuned_model(base)
    TOWERS[layout](model, path)
    loaded = load_model(f"{path}@local-dir:{base}")
    assert_computes(loaded, model)
    info = loaded.info
    assert (info.activation, info.base, info.sha256) == ("QuickGELU", f"local-dir:{base}", hash_file(path))
    assert info.base_sha256 == hash_file(base / "open_clip_model.safetensors")
    assert info.base_cosine is not None
    assert info.base_cosine > 0.9
    assert json.loads(json.dumps(info.to_dict())) == info.to_dict()
    assert all(torch.equal(tensor, visual(model)[name]) for name, tensor in loaded.model.visual.state_dict().items())


@pytest.mark.parametrize("family", ["resnet", "timm"])
@pytest.mark.parametrize("layout", ["bare", "tecoa", "advflyp"])
def test_towers_that_are_no_transformers(family: str, layout: str, model_folder: Folder, tmp_path: Path) -> None:
    path, model = tmp_path / "tuned.pt", tuned_model(model_folder(family))
    TOWERS[layout](model, path)
    assert_computes(load_model(f"{path}@local-dir:{model_folder(family)}"), model)


@pytest.mark.parametrize("layout", WHOLES)
def test_a_whole_model(layout: str, architecture: str, model_folder: Folder, tmp_path: Path) -> None:
    path, model = tmp_path / "tuned.pt", tuned_model(model_folder("vit-quick"))
    WHOLES[layout](model, path)
    assert_computes(load_model(f"{architecture}-quickgelu:{path}"), model)
    message = refusal(str(path))  # nothing tells the activation
    assert f"write {architecture}:{path} or {architecture}-quickgelu:{path}" in message
    assert "no base to name" in refusal(f"{path}@tiny")


def test_architecture_and_activation_are_detected(architecture: str, model_folder: Folder, tmp_path: Path) -> None:
    path, model = tmp_path / "w.pt", tuned_model(model_folder("vit-quick"))
    torch.save(state_of(model) | {"input_resolution": torch.tensor(32)}, path)  # as OpenAI's releases
    loaded = load_model(str(path))
    assert loaded.info.architecture == f"{architecture}-quickgelu"
    assert "input_resolution" in loaded.info.detected[0]
    assert_computes(loaded, model)
    torch.save(tuned_model(model_folder("resnet")).state_dict(), path)
    assert "fits no architecture that open_clip knows" in refusal(str(path))


@pytest.fixture
def openai_release(architecture: str, model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny QuickGELU architecture with a tag "openai", whose weights lie in the cache; returns its name."""
    name = f"{architecture}-quickgelu"
    monkeypatch.setitem(pretrained._PRETRAINED, name, {"openai": pretrained._slpcfg(url="x", quick_gelu=True)})
    weights = model_folder("vit-quick") / "open_clip_model.safetensors"
    monkeypatch.setattr(pretrained, "download_pretrained", lambda *_, **__: str(weights))
    assert factory.get_model_config(name)
    return name


@pytest.mark.parametrize(("layout", "implied"), [("tecoa", True), ("advflyp", True), ("agft", True), ("bare", False)])
def test_the_base_is_openais_where_the_layout_implies_it(
    layout: str, implied: bool, openai_release: str, model_folder: Folder, tmp_path: Path
) -> None:
    path, model = tmp_path / "tuned.pth.tar", tuned_model(model_folder("vit-quick"))
    TOWERS[layout](model, path)
    if not implied:
        message = refusal(str(path))
        assert "holds an image tower alone (image tower, shaped as clipguard-test-vit or" in message
        assert f"as in `base={openai_release}:openai`" in message
        return
    loaded = load_model(str(path))
    assert loaded.info.base == f"{openai_release}:openai"
    assert f"base detected: {openai_release}:openai" in loaded.info.detected[0]
    assert_computes(loaded, model)
    assert load_model(f"{openai_release}:{path}").info.base == loaded.info.base
    assert "name the model" in refusal(f"{openai_release.removesuffix('-quickgelu')}:{path}")


def test_another_base_than_it_was_tuned_from_is_noticed(
    model_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, path = model_folder("vit-quick"), tmp_path / "tuned.pt"
    model = tuned_model(base)
    torch.nn.init.normal_(model.visual.conv1.weight)
    for block in model.visual.transformer.resblocks:
        torch.nn.init.normal_(block.mlp.c_fc.weight)
        torch.nn.init.normal_(block.mlp.c_proj.weight)
    save_bare(model, path)
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        loaded = load_model(f"{path}@local-dir:{base}")
    assert "was it tuned from another model" in caplog.text
    assert loaded.info.base_cosine is not None
    assert loaded.info.base_cosine < 0.5


class RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("layout", TOWERS)
@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "cut"])
def test_wrong_twins(damage: str, layout: str, model_folder: Folder, tmp_path: Path) -> None:
    base, path = model_folder("vit-quick"), tmp_path / "tuned.pth.tar"
    model = tuned_model(base)
    tower = model.visual
    if damage == "missing":
        tower.proj = None
    elif damage == "extra":
        tower.ln_post.register_buffer("extra", torch.zeros(1))
    elif damage == "shape":
        tower.positional_embedding = torch.nn.Parameter(torch.zeros(26, 32))
    if (layout, damage) == ("transformers", "extra"):  # our writer knows no such name
        tensors = to_transformers({f"visual.{name}": t for name, t in visual(tuned_model(base)).items()})
        torch.save(tensors | {"vision_model.post_layernorm.extra": torch.zeros(1)}, path)
    else:
        TOWERS[layout](model, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refusal(f"{path}@local-dir:{base}")
    extra = "vision_model.post_layernorm.extra" if layout == "transformers" else "visual.ln_post.extra"
    expected = {
        "missing": "1 missing: visual.proj",
        "extra": f"1 unexpected: {extra}",
        "shape": "visual.positional_embedding (file [26, 32], model [17, 32])",
        "cut": "corrupt, truncated",
    }
    assert expected[damage] in message


@pytest.mark.parametrize("place", ["vision_encoder_state_dict", "args"])
def test_code_hidden_in_a_checkpoint_does_not_run(place: str, model_folder: Folder, tmp_path: Path) -> None:
    base, path, target = model_folder("vit-quick"), tmp_path / "evil.pth.tar", tmp_path / "pwned"
    content = {"vision_encoder_state_dict": visual(tuned_model(base)), "args": 1, "epoch": 3}
    torch.save({**content, place: RunsCode(target)}, path)
    message = refusal(f"{path}@local-dir:{base}")
    assert "posix.system" in message
    assert "can run code" in message
    assert not target.exists()


def test_a_tower_of_the_other_activation(model_folder: Folder, tmp_path: Path) -> None:
    base, path = model_folder("vit"), tmp_path / "tower.pt"
    state = visual(tuned_model(base))
    torch.save({name: t if "ln_" in name else t.half() for name, t in state.items()}, path)
    message = refusal(f"{path}@local-dir:{base}")
    assert "was trained with QuickGELU (it mixes float16 and float32 the way OpenAI's releases do)" in message
    load_model(f"{path}@local-dir:{model_folder('vit-quick')}")


def test_what_is_left_out_is_said_and_can_be_chosen(architecture: str, model_folder: Folder, tmp_path: Path) -> None:
    base, path = model_folder("vit-quick"), tmp_path / "w.pt"
    first, second = visual(tuned_model(base)), visual(tuned_model(base))
    second["proj"] = 2 * second["proj"]
    torch.save({"state_dict": first, "model_ema": second}, path)
    plain = load_model(f"{path}@local-dir:{base}")
    assert plain.info.detected == (f"left out: model_ema ({len(second)} tensors)",)
    assert torch.equal(plain.model.visual.proj, first["proj"])
    average = load_model(f"{path}@local-dir:{base}#entry=model_ema")
    assert torch.equal(average.model.visual.proj, second["proj"])
    torch.save({"state_dict": state_of(tuned_model(base)), "model_ema": second}, tmp_path / "whole.pt")
    assert load_model(f"{architecture}-quickgelu:{tmp_path / 'whole.pt'}").info.detected == plain.info.detected
    assert "has no entry 'swa': it holds state_dict, model_ema" in refusal(f"{path}@local-dir:{base}#entry=swa")
    torch.save({"a": first, "b": second}, path)
    assert f"several state dicts (a, b): name one, as in {path}#entry=a" in refusal(f"{path}@local-dir:{base}")
    torch.save({"vision_encoder_state_dict": {**first, "prompt_pos_embedding": torch.zeros(3)}}, path)
    assert "prompt_pos_embedding" in load_model(f"{path}@local-dir:{base}").info.detected[0]


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.1,0.2,0.3/0.5,0.5,0.5", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
    ],
)
def test_normalization_is_per_model(
    text: str, mean: tuple[float, ...], std: tuple[float, ...], model_folder: Folder, tmp_path: Path
) -> None:
    base, path = model_folder("vit-quick"), tmp_path / "pmg.pth.tar"
    model = tuned_model(base)
    save_tecoa(model, path)
    loaded = load_model(f"{path}@local-dir:{base}#normalization={text}")
    assert (loaded.info.mean, loaded.info.std) == (mean, std)
    assert_computes(loaded, model)
    assert load_model(f"tiny#normalization={text}").info.mean == mean


@pytest.mark.parametrize("text", ["imgnet", "1,2/3,4", "0.5,0.5,0.5", "1,1,1/0,1,1", "nan,1,1/1,1,1"])
def test_bad_normalizations(text: str) -> None:
    assert "use clip, imagenet, or mean and standard deviation" in refusal(f"tiny#normalization={text}")


def test_mistakes_in_specs_name_their_cure(model_folder: Folder, tmp_path: Path) -> None:
    path, odd = tmp_path / "w.pt", tmp_path / "a@b#c.pt"
    base = f"local-dir:{model_folder('vit-quick')}"
    save_bare(tuned_model(model_folder("vit-quick")), path)
    shutil.copy(path, odd)
    load_model(f"{odd}@{base}")
    folder = tmp_path / "run@1#2"
    shutil.copytree(model_folder("vit"), folder)
    assert load_model(f"local-dir:{folder}#normalization=imagenet").info.mean == (0.485, 0.456, 0.406)
    for spec, part in (
        (f"{path}@", "write FILE@BASE"),
        (f"{path}@{base}#norm=clip", "Cannot read #norm=clip"),
        (f"{path}@{base}#entry=", "Cannot read #entry="),
        ("tiny@tiny", "only a weight file or an adapter takes a base"),
        ("tiny#entry=x", "is for weight files"),
        (f"{path}@{path}", f"The base of {path}: {path} holds an image tower alone"),
        (f"{path}@nonsense", "Unknown model 'nonsense'"),
        (f"ViT-B-32:{path}@{base}", "leave out ViT-B-32:"),
        (str(tmp_path / "none.pth.tar"), "No weight file"),
    ):
        assert part in refusal(spec), spec


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14-336", "RN50", "convnext_base_w"])
def test_known_architectures_are_told_by_their_shapes(name: str) -> None:
    """Without weights: names and shapes of the models as open_clip builds them."""
    tower = outline(name).visual.state_dict()
    file = WeightFile(Path(name), "", "torch.save", find_contents(dict(tower), Path(name)))
    twin = "convnext_base_w_320" if name.startswith("convnext") else f"{name}-quickgelu"  # no resolution in ConvNeXt
    assert sorted(find_architectures(file)) == sorted([name, twin])


def test_the_base_may_be_a_file(architecture: str, model_folder: Folder, tmp_path: Path) -> None:
    base, path, model = tmp_path / "ViT-openai.pt", tmp_path / "w.pt", tuned_model(model_folder("vit-quick"))
    torch.save(state_of(model), base)
    save_bare(model, path)
    loaded = load_model(f"{path}@{base}")
    assert_computes(loaded, model)
    assert loaded.info.detected[0].startswith(f"base: architecture detected: {architecture}-quickgelu")
    assert loaded.info.architecture == f"{architecture}-quickgelu"
    assert load_model(f"{path}@{architecture}-quickgelu:{base}").info.base == f"{architecture}-quickgelu:{base}"
