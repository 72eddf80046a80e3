"""The classifier equals open_clip by hand, is frozen, and differentiable in native pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from tiny_models import reference_model, write_model

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.classifier import ZeroShotClassifier
from clipguard.models.preprocessing import Preprocessing

NAMES = ["cat", "dog", "fire engine"]
TEMPLATES = ["a photo of a {}.", "{}", "art of the {}."]


@pytest.mark.parametrize("family", ["vit", "vit-quick", "resnet", "timm", "siglip", "coca"])
def test_logits_equal_open_clips(family: str, model_folder: Callable[[str], Path]) -> None:
    folder = model_folder(family)
    loaded = load_model(f"local-dir:{folder}")
    height, width = loaded.info.image_size
    pixels = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(1))
    logits = loaded.classifier(NAMES, TEMPLATES)(pixels)

    reference, tokenizer = reference_model(folder), open_clip.get_tokenizer(f"local-dir:{folder}")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loaded.info.mean, loaded.info.std))
    with torch.no_grad():
        image = torch.nn.functional.normalize(reference.encode_image((pixels - mean) / std), dim=-1)
        columns = []
        for name in NAMES:
            text = reference.encode_text(tokenizer([t.format(name) for t in TEMPLATES]))
            text = torch.nn.functional.normalize(text, dim=-1).mean(dim=0)
            columns.append(text / text.norm())
        expected = reference.logit_scale.exp() * image @ torch.stack(columns, dim=1)
        if family == "siglip":
            expected = expected + reference.logit_bias
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def classifier(model_folder: Callable[[str], Path]) -> ZeroShotClassifier:
    return load_model(f"local-dir:{model_folder('resnet')}").classifier(NAMES, TEMPLATES, "native")


def test_frozen_and_always_in_eval_mode(classifier: ZeroShotClassifier) -> None:
    classifier.train()
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    before = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    classifier(pixels).sum().backward()
    assert pixels.grad is not None
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in classifier.named_buffers())  # batch-norm too


def test_gradient_flows_to_native_pixels(classifier: ZeroShotClassifier) -> None:
    pixels = torch.rand(2, 3, 50, 70, requires_grad=True)
    logits = classifier(pixels)
    assert logits.shape == (2, classifier.num_classes)
    logits[:, 0].sum().backward()
    assert pixels.grad is not None
    assert torch.isfinite(pixels.grad).all()
    inside = pixels.grad[..., 15:-15]  # the centre crop keeps the middle 50 columns
    assert (inside.abs().sum(dim=(1, 2, 3)) > 0).all()
    assert (inside != 0).float().mean() > 0.9


def test_images_are_independent_of_their_batch(classifier: ZeroShotClassifier) -> None:
    pixels = torch.rand(4, 3, 40, 40)
    torch.testing.assert_close(classifier(pixels)[1:2], classifier(pixels[1:2]), rtol=1e-4, atol=1e-4)


def test_autocast_keeps_float32_logits(classifier: ZeroShotClassifier) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert classifier(pixels).dtype == torch.float32


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("family", ["vit", "vit-wide"])
def test_native_resize_follows_the_models_own(mode: str, interpolation: str, family: str, tmp_path: Path) -> None:
    changes = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 100}
    loaded = load_model(f"local-dir:{write_model(tmp_path, family, **changes)}")
    assert (loaded.info.resize_mode, loaded.info.interpolation) == (mode, interpolation)
    model, native = loaded.classifier(NAMES, TEMPLATES), loaded.classifier(NAMES, TEMPLATES, "native")
    from clipguard.models.preprocessing import resize_pixels

    noise = Image.effect_noise((97, 61), 60).convert("RGB")
    for size in ((97, 61), (61, 97), (20, 20), (33, 32), (loaded.info.image_size[::-1])):
        image = noise.resize(size)
        by_open_clip = loaded.preprocess()(image)
        pixels = loaded.preprocess("native")(image)[None]
        ours = resize_pixels(pixels, loaded.preprocessing)[0]
        assert ours.shape == by_open_clip.shape
        assert 0 <= ours.min() <= ours.max() <= 1
        # PIL rounds to 8 bits after each of its two passes.
        torch.testing.assert_close(ours, by_open_clip, rtol=0, atol=2.5 / 255)
    assert torch.equal(ours, by_open_clip)  # the last image has the model's own size
    assert torch.equal(model(by_open_clip[None]), native(pixels))


def test_text_is_encoded_once_and_in_batches(model_folder: Callable[[str], Path]) -> None:
    loaded = load_model(f"local-dir:{model_folder('vit')}")
    sizes: list[int] = []
    tokenizer = loaded.tokenizer

    def counting(texts: list[str]) -> torch.Tensor:
        sizes.append(len(texts))
        return tokenizer(texts)

    loaded.tokenizer = counting
    names = [f"thing {i}" for i in range(150)]
    first = loaded.classifier(names, TEMPLATES)
    assert sum(sizes) == 450
    assert max(sizes) <= 256
    second = loaded.classifier(names, TEMPLATES, "native")
    assert sum(sizes) == 450
    assert torch.equal(first.text, second.text)
    assert first.text.shape == (16, 150)
    torch.testing.assert_close(first.text.norm(dim=0), torch.ones(150))
    loaded.classifier(names, TEMPLATES[:1])
    assert sum(sizes) == 600


def test_bad_prompts_and_long_prompts(model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_model(f"local-dir:{model_folder('vit')}")
    with pytest.raises(ModelError, match=r"'a photo' has no \{\}"):
        loaded.classifier(NAMES, ["a photo"])
    with pytest.raises(ModelError, match="at least one class name"):
        loaded.classifier([], TEMPLATES)
    with pytest.raises(ModelError, match="one template"):
        loaded.classifier(NAMES, [])
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        loaded.classifier(["word " * 40], TEMPLATES)
    assert "context of 16 tokens" in caplog.text
    assert torch.isfinite(loaded.classifier(["a {} in braces"], ["{}, {}"]).text).all()


def test_the_stores_key_of_ordinary_preprocessing_has_no_new_entry() -> None:
    plain = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    assert list(plain.to_dict()) == ["image_size", "mean", "std", "interpolation", "resize_mode", "fill_color"]
    assert replace(plain, resize_size=(36, 36)).to_dict() == {**plain.to_dict(), "resize_size": (36, 36)}
