"""SigLIP 2, CoCa and NaFlex as far as the installed open_clip builds them: its own pipeline's logits, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from tiny_models import CONFIGS, TEXT, reference_model, state_of

from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.errors import ModelError
from clipguard.models import load_model

WORDS = ["<pad>", "<eos>", "<unk>", "a", "photo", "of", "cat", "dog", "bus", "red", "stop", "sign"]
NAMES, TEMPLATE = ["Cat!", "dog", "red, stop-sign"], "A photo of a {}."
IMAGE = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 60).convert("RGB")
# As in open_clip's ViT-B-16-SigLIP2.json, with timm's smallest tower with attention pooling.
SIGLIP2: dict[str, Any] = {
    "embed_dim": 96,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_model_pretrained": False,
                   "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"context_length": 12, "vocab_size": 64, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
                 "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 96, "heads": 2, "layers": 2,
                 "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
                 "act_kwargs": {"approximate": "tanh"}},
}  # fmt: skip
SIGLIP_PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
# CoCa's text has its class token after the others; open_clip's coca_ViT-B-32.json has 76 of them.
COCA = {**CONFIGS["coca"], "text_cfg": {**CONFIGS["coca"]["text_cfg"], "context_length": 76}}


@timm.models.register_model
def clipguard_test_naflexvit(pretrained: bool = False, **settings: Any) -> NaFlexVit:
    """A NaFlex tower of two small blocks, as timm's naflexvit_base_patch16_siglip."""
    assert not pretrained
    config = NaFlexVitCfg(patch_size=16, embed_dim=32, depth=2, num_heads=2, global_pool="map", class_token=False,
                          pos_embed_grid_size=(4, 4), act_layer="gelu_tanh")  # fmt: skip
    return NaFlexVit(config, num_classes=settings["num_classes"])


NAFLEX: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "timm_model_name": "clipguard_test_naflexvit", "timm_model_pretrained": False,
                   "timm_pool": "", "timm_proj": "none"},
    "text_cfg": TEXT,
}  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """Words as SigLIP 2's tokenizer ends and fills up texts: with <eos>, and <pad> on the right."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.padding_side = "right"
    fast.save_pretrained(folder)


def write(folder: Path, config: dict[str, Any], preprocess: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def save_random(folder: Path) -> None:
    """Weights large enough for texts and images to differ."""
    model = reference_model(folder, load=False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not name.startswith("logit_"):
            torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    save_file(state_of(model), folder / "open_clip_model.safetensors")


def their_logits(folder: Path) -> torch.Tensor:
    """open_clip's own model, transform and tokenizer."""
    with quiet_libraries():
        model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        text = model.encode_text(tokenizer([TEMPLATE.format(name) for name in NAMES]), normalize=True)
        logits = model.logit_scale.exp() * model.encode_image(transform(IMAGE)[None], normalize=True) @ text.T
        bias = getattr(model, "logit_bias", None)
        return logits if bias is None else logits + bias


@pytest.mark.parametrize("kind", ["siglip2", "coca", "naflex"])
def test_logits_are_those_of_open_clips_own_pipeline(kind: str, tmp_path: Path) -> None:
    clip = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    towers = {"siglip2": (SIGLIP2, SIGLIP_PREPROCESS), "coca": (COCA, clip), "naflex": (NAFLEX, SIGLIP_PREPROCESS)}
    config, preprocess = towers[kind]
    folder = write(tmp_path / kind, config, preprocess)
    if kind == "siglip2":
        write_tokenizer(folder)
    save_random(folder)
    loaded = load_model(f"local-dir:{folder}")
    expected = their_logits(folder)
    pixels = loaded.preprocess()(IMAGE)[None]
    logits = loaded.classifier(NAMES, [TEMPLATE])(pixels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)
    assert expected.std() > 1e-3
    assert loaded.info.logit_bias == (-10.0 if kind == "siglip2" else None)
    native = loaded.classifier(NAMES, [TEMPLATE], "native")(loaded.preprocess("native")(IMAGE)[None].requires_grad_())
    native.sum().backward()  # an attack has its gradient through the tower
    assert any("NaFlex" in note for note in loaded.info.detected) == (kind == "naflex")


def test_what_this_open_clip_cannot_build_is_refused_by_name(tmp_path: Path) -> None:
    """A config of a later one, with images of any size."""
    vision = {**NAFLEX["vision_cfg"], "image_seq_len": 576}
    folder = write(tmp_path / "later", {**NAFLEX, "vision_cfg": vision}, SIGLIP_PREPROCESS)
    save_file({"logit_scale": torch.zeros(())}, folder / "open_clip_model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(f"local-dir:{folder}")
    message = str(caught.value)
    assert "open_clip cannot build open_clip_config.json of " in message
    assert f"'image_seq_len'): open_clip {open_clip.__version__} has no such setting; update it" in message
    assert "\n" not in message
