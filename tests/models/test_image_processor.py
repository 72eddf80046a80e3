"""What image processors of transformers do to images: folders of its versions 4 and 5, read, refused and written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import write_model
from torch.nn import functional as F

from clipguard.core.errors import ModelError
from clipguard.core.notices import noticing
from clipguard.models import LoadedModel, load_model
from clipguard.models.checkpoint.image_processor import DEFAULTS, write_image_processor
from clipguard.models.convert import convert_files
from clipguard.models.export import checkpoint_files
from clipguard.models.preprocessing import resize_pixels

transformers = pytest.importorskip("transformers")
FOUR, FIVE = "preprocessor_config.json", "processor_config.json"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
# One of each: (settings, the processor's class).
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "clip": (SIZE, "CLIP"),
    "old numbers for sizes": ({"size": 32, "crop_size": 32}, "CLIP"),
    "mean and std": ({**SIZE, "image_mean": [0.5] * 3, "image_std": [0.5, 0.4, 0.3]}, "CLIP"),
    "no normalisation": ({**SIZE, "do_normalize": False}, "CLIP"),
    "no rescaling": ({**SIZE, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [90.0] * 3}, "CLIP"),
    "another factor": ({**SIZE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}, "CLIP"),
    "factor alone": ({**SIZE, "rescale_factor": 1 / 64, "do_normalize": False}, "CLIP"),
    "bilinear": ({**SIZE, "resample": 2}, "CLIP"),
    "larger, then crop": ({**SIZE, "size": {"shortest_edge": 39}}, "CLIP"),
    "smaller, then crop": ({**SIZE, "size": {"shortest_edge": 25}}, "CLIP"),
    "default size, then crop": ({"crop_size": {"height": 32, "width": 32}}, "CLIP"),
    "squash": ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "CLIP"),
    "squash, then crop": ({**SIZE, "size": {"height": 41, "width": 36}}, "CLIP"),
    "no resize": ({**SIZE, "do_resize": False}, "CLIP"),
    "nulls": ({**SIZE, "image_mean": None, "do_normalize": None, "image_std": None}, "CLIP"),
    "siglip": ({"size": {"height": 32, "width": 32}}, "Siglip"),
    "vit": ({"size": {"height": 32, "width": 32}}, "ViT"),
    "deit": ({"size": {"height": 37, "width": 37}, "crop_size": {"height": 32, "width": 32}}, "DeiT"),
    "bit": (SIZE, "Bit"),
    "blip": ({"size": {"height": 32, "width": 32}}, "Blip"),
}


def images() -> list[Image.Image]:
    """Smooth colours with an edge, wide, high, square and smaller than the model's."""
    made = []
    for number, (width, height) in enumerate([(75, 40), (44, 80), (64, 64), (30, 21)]):
        y, x = np.mgrid[0:height, 0:width] / max(width, height)
        waves = [np.sin(6 * x + number + c) * np.cos((4 + c) * y) for c in range(3)]
        pixels = np.stack(waves, axis=-1) * 0.4 + 0.5 + 0.1 * (x > 0.3)[..., None]
        made.append(Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)))
    return made


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `CLIPModel.save_pretrained` writes it, without a processor (shared: copy it)."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**SIZES, "max_position_embeddings": 16},
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    folder = tmp_path_factory.mktemp("clip") / "clip"
    model = transformers.CLIPModel(config)
    for parameter in model.vision_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def copy(folder: Path, to: Path, settings: dict[str, Any], name: str = FOUR) -> Path:
    """The folder with a processor's settings, as version 4 or 5 of transformers writes them."""
    shutil.copytree(folder, to)
    content = {"image_processor": settings, "processor_class": "CLIPProcessor"} if name == FIVE else settings
    (to / name).write_text(json.dumps(content))
    return to


def normalized(loaded: LoadedModel, pixels: torch.Tensor) -> torch.Tensor:
    p = loaded.preprocessing
    return (pixels - torch.tensor(p.mean).view(3, 1, 1)) / torch.tensor(p.std).view(3, 1, 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_model_sees_what_it_sees_in_transformers(name: str, clip_folder: Path, tmp_path: Path) -> None:
    given, family = SETTINGS[name]
    settings = {"image_processor_type": f"{family}ImageProcessor", **given}
    folder = copy(clip_folder, tmp_path / "model", settings, FIVE if len(name) % 2 else FOUR)
    processor = getattr(transformers, f"{family}ImageProcessor").from_pretrained(folder)
    loaded = load_model(f"local-dir:{folder}")
    written = tmp_path / "written"
    written.mkdir()
    (written / FOUR).write_text(json.dumps(write_image_processor(loaded.preprocessing)))
    again = transformers.CLIPImageProcessor.from_pretrained(written)
    for image in images():
        expected = processor(images=image, return_tensors="pt")["pixel_values"][0].float()
        level = 1 / 255 / min(loaded.preprocessing.std)  # of 8 bits
        own = loaded.preprocess()(image)
        torch.testing.assert_close(normalized(loaded, own), expected, rtol=0, atol=2.01 * level)
        inside = resize_pixels(loaded.preprocess("native")(image)[None], loaded.preprocessing)[0]
        torch.testing.assert_close(inside, own, rtol=0, atol=2.01 / 255)  # not rounded to 8 bits
        theirs = again(images=image, return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)


def test_a_written_folder_computes_the_same_in_transformers_and_here(clip_folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS["larger, then crop"][0] | {"image_mean": [0.3, 0.5, 0.6], "rescale_factor": 1 / 200}
    folder = copy(clip_folder, tmp_path / "model", settings, FIVE)
    loaded = load_model(f"local-dir:{folder}")
    written = tmp_path / "written"
    written.mkdir()
    for file, content in convert_files(loaded, "hf").items():
        (written / file).write_bytes(content)
    again = load_model(f"local-dir:{written}")
    for image in images()[:2]:
        expected = [embed_in_transformers(there, image) for there in (folder, written)]
        own = [embed(here, image) for here in (loaded, again)]
        torch.testing.assert_close(expected[1], expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own[1], own[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(own[0], expected[0], rtol=0, atol=0.01)


def embed(loaded: LoadedModel, image: Image.Image) -> torch.Tensor:
    with torch.no_grad():
        return loaded.classifier(["cat", "dog"], ["a {}"]).embed(loaded.preprocess()(image)[None])


def embed_in_transformers(folder: Path, image: Image.Image) -> torch.Tensor:
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels = transformers.CLIPImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return F.normalize(model.visual_projection(model.vision_model(pixels.float()).pooler_output), dim=-1)


def test_the_defaults_are_those_of_transformers() -> None:
    for family, defaults in DEFAULTS.items():
        theirs = getattr(transformers, f"{family}ImageProcessor")().to_dict()
        for key, value in defaults.items():
            default = theirs.get(key, False if key in ("do_pad", "do_center_crop") else None)
            assert (tuple(default) if isinstance(default, (list, tuple)) else default) == value, (family, key)


REFUSED = [
    ({**SIZE, "resample": 1}, "resample 1 is not supported: it must be 2 (bilinear) or 3 (bicubic)", {"resample": 3}),
    ({**SIZE, "resample": "lanczos"}, 'resample "lanczos"', {"resample": "bicubic"}),
    ({**SIZE, "crop_size": 40}, "crop_size 40 is not supported: it must be the 32 of the model", {"crop_size": 32}),
    ({"size": {"shortest_edge": 32}}, 'crop_size {"height": 224', {"crop_size": {"height": 32, "width": 32}}),
    ({**SIZE, "do_center_crop": False}, "without a centre crop", {"size": {"height": 32, "width": 32}}),
    ({**SIZE, "size": {"longest_edge": 32}}, "size", {"size": {"height": 32, "width": 32}}),
    ({**SIZE, "size": {"shortest_edge": 32, "longest_edge": 99}}, "size", {"size": {"shortest_edge": 32}}),
    ({**SIZE, "do_resize": False, "do_center_crop": False}, "set one of them to true", {"do_center_crop": True}),
    ({**SIZE, "do_normalize": "yes"}, 'do_normalize "yes" is not supported: it must be true', {"do_normalize": True}),
    ({**SIZE, "image_std": [0.5, 0.5, 0]}, "image_std", {"image_std": [0.5] * 3}),
    ({**SIZE, "image_mean": [0.5]}, "image_mean", {"image_mean": [0.5] * 3}),
    ({**SIZE, "rescale_factor": 0}, "rescale_factor 0 is not supported: it must be a number", {"rescale_factor": 0.1}),
    ({**SIZE, "do_pad": True, "pad_size": 48}, "pad_size 48", {"do_pad": False}),
    ({**SIZE, "image_processor_type": "Siglip2ImageProcessor"}, "write that as", {"image_processor_type": None}),
]


@pytest.mark.parametrize(("settings", "part", "cure"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name_and_its_cure_works(
    settings: dict[str, Any], part: str, cure: dict[str, Any], clip_folder: Path, tmp_path: Path
) -> None:
    folder = copy(clip_folder, tmp_path / "model", settings)
    with pytest.raises(ModelError) as caught:
        load_model(f"local-dir:{folder}")
    assert part in str(caught.value)
    assert "preprocessor_config.json" in str(caught.value)
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **cure}))
    load_model(f"local-dir:{folder}")


def test_what_is_assumed_or_not_used_is_said(clip_folder: Path, tmp_path: Path) -> None:
    with noticing() as notices:
        assert "assumed CLIP's own" in load_model(f"local-dir:{clip_folder}").info.detected[-1]
        mean = load_model(f"local-dir:{copy(clip_folder, tmp_path / 'a', {'image_mean': [0.1] * 3})}")
        load_model(f"local-dir:{copy(clip_folder, tmp_path / 'b', {**SIZE, 'do_sharpen': True})}")
        both = copy(clip_folder, tmp_path / "c", {**SIZE, "image_mean": [0.3] * 3}, FIVE)
        (both / "preprocessor_config.json").write_text(json.dumps(SIZE | {"image_mean": [0.2] * 3}))
        assert load_model(f"local-dir:{both}").info.mean == (0.3,) * 3
        # As transformers 4 wrote it: nothing of the image processor's.
        four = copy(clip_folder, tmp_path / "d", {**SIZE, "image_mean": [0.2] * 3})
        (four / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
        assert load_model(f"local-dir:{four}").info.mean == (0.2,) * 3
    assert mean.info.mean == (0.1,) * 3
    assert mean.preprocessing.image_size == (32, 32)
    said = [(entry["kind"], entry["text"].partition(": ")[2] or entry["text"]) for entry in notices]
    assert [kind for kind, _ in said] == ["guessed", "guessed", "skipped", "guessed"]
    assert "assumed the model's 32 pixels" in said[1][1]
    assert said[2][1] == "not used, as in transformers: do_sharpen"
    assert "used the first" in said[3][1]


def test_convert_to_open_clip_refuses_what_its_config_cannot_say(clip_folder: Path, tmp_path: Path) -> None:
    folder = copy(clip_folder, tmp_path / "model", SETTINGS["larger, then crop"][0])
    with pytest.raises(ModelError, match=r"shortest to 39, then the centre.*convert it with `to=hf`"):
        convert_files(load_model(f"local-dir:{folder}"), "open_clip")
    squash = load_model(f"local-dir:{copy(clip_folder, tmp_path / 'squash', SETTINGS['squash'][0])}")
    config = json.loads(convert_files(squash, "open_clip")["open_clip_config.json"])
    assert config["preprocess_cfg"]["resize_mode"] == "squash"


@pytest.mark.parametrize(
    ("preprocess", "part"),
    [
        ({"fill_color": 256}, '"fill_color" a whole number in 0..255'),
        ({"fill_color": [0, 0, 0]}, '"fill_color" a whole number'),
        ({"mode": "BGR"}, '"mode" must be "RGB"'),
        ({"interpolation": "lanczos"}, '"interpolation" must be one of'),
        ({"resize_mode": "crop"}, '"resize_mode" must be one of'),
        ({"resize_size": [40]}, '"resize_size" must be two whole numbers'),
    ],
)
def test_odd_values_in_an_open_clip_config(preprocess: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(_odd(tmp_path, preprocess))
    assert part in str(caught.value)


def test_a_string_that_says_false_is_not_taken_for_true(tmp_path: Path) -> None:
    path = write_model(tmp_path / "clip", "vit") / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = "false"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match='"quick_gelu" in model_cfg must be true or false'):
        load_model(f"local-dir:{path.parent}")


def _odd(folder: Path, preprocess: dict[str, Any]) -> str:
    path = write_model(folder / "clip", "vit") / "open_clip_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "preprocess_cfg": {**config["preprocess_cfg"], **preprocess}}))
    return f"local-dir:{path.parent}"


def test_unknown_keys_in_an_open_clip_config_are_named(tmp_path: Path) -> None:
    with noticing() as notices:
        load_model(_odd(tmp_path, {"crop_pct": 0.875, "mode": None}))
    assert [entry["kind"] for entry in notices] == ["skipped"]
    assert notices[0]["text"].endswith("not used of preprocess_cfg, as in open_clip: crop_pct")


def test_a_model_tuned_from_such_a_folder_keeps_its_preprocessing(clip_folder: Path, tmp_path: Path) -> None:
    """Fine-tuning writes open_clip's layout, whose config gets a key of ours."""
    loaded = load_model(f"local-dir:{copy(clip_folder, tmp_path / 'model', SETTINGS['larger, then crop'][0])}")
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for name, content in checkpoint_files(loaded, loaded.model.state_dict()).items():
        (tuned / name).write_bytes(content)
    with noticing() as notices:
        assert load_model(f"local-dir:{tuned}").preprocessing == loaded.preprocessing
    assert notices == []


def test_configs_of_old_and_of_half_a_model(clip_folder: Path, tmp_path: Path) -> None:
    folder = copy(clip_folder, tmp_path / "model", SIZE)
    config = json.loads((folder / "config.json").read_text())
    # As in transformers, vision_config_dict is believed against vision_config.
    wrong = {**config["vision_config"], "patch_size": 16}
    old = {**config, "vision_config": wrong, "vision_config_dict": config["vision_config"], "text_config_dict": None}
    (folder / "config.json").write_text(json.dumps(old))
    assert transformers.CLIPConfig.from_pretrained(folder).vision_config.patch_size == 8
    assert load_model(f"local-dir:{folder}").model_cfg["vision_cfg"]["patch_size"] == 8
    for changes, part in (
        ({"model_type": "clip_vision_model"}, "an image tower alone: give its weight file as `model`"),
        ({"vision_config": {**config["vision_config"], "image_size": [32, 32]}}, "image_size [32, 32]"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ModelError) as caught:
            load_model(f"local-dir:{folder}")
        assert part in str(caught.value)
