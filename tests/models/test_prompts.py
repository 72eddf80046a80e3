"""Learned prompts in a model: what the towers compute with them, the file, and what it does not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transformer import text_global_pool
from text_models import write_model
from torch import Tensor
from torch.nn import functional as F
from training_runs import write_vit

import clipguard
from clipguard.core.errors import ModelError
from clipguard.core.notices import noticing
from clipguard.models import LoadedModel, load_model
from clipguard.models.prompts.files import base_of, prompts_label, read_prompts, with_prompts
from clipguard.models.prompts.learned import LearnedPrompts
from clipguard.models.prompts.text import (
    Layout,
    Position,
    encode_learned,
    fitting_tokens,
    make_tokens,
    text_tower,
    words_embedding,
)

NAMES = ["cat", "polar bear", "St. Bernard (dog)"]


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model("tiny")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_vit(tmp_path_factory.mktemp("prompts") / "vit")


def context(width: int, tokens: int = 4, seed: int = 0) -> Tensor:
    return 0.02 * torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["tiny", "custom-parameter", "linear"])
def test_context_of_words_is_their_text(kind: str, tmp_path: Path) -> None:
    """Of CLIP's own text tower and of those in an object of their own."""
    model = load_model("tiny" if kind == "tiny" else f"local-dir:{write_model(tmp_path / 'm', kind)}")
    words = words_embedding(model.model, model.tokenizer, "a photo of a", "it")
    assert len(words) == 4
    tokens = make_tokens(model.tokenizer, NAMES, Layout.free(4))
    learned = encode_learned(model.model, tokens, words)
    with torch.no_grad():
        texts = model.model.encode_text(model.tokenizer([f"a photo of a {name}." for name in NAMES]))  # type: ignore[operator]
    assert torch.equal(learned, F.normalize(texts, dim=-1))
    torch.testing.assert_close(learned, model.text_features(NAMES, ["a photo of a {}."]).T)
    assert not torch.allclose(learned, encode_learned(model.model, tokens, words.flip(0)), atol=1e-3)


def assembled(model: Any, tokenizer: Any, vectors: Tensor, name: str, position: str) -> Tensor:
    """The unit embedding of one prompt, put together piece by piece, as CoOp's code does."""
    ids = tokenizer([f"X X X X {name}."])
    start, end, rest = model.token_embedding(ids)[0].split([1, 4, ids.shape[1] - 5])
    assert len(end) == len(vectors)
    length = len(tokenizer.encode(name))
    own, after = rest[:length], rest[length:]
    pieces = {
        "end": [start, vectors, own, after],
        "middle": [start, vectors[:2], own, vectors[2:], after],
        "front": [start, own, vectors, after],
    }[position]
    x = torch.cat(pieces)[None] + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    return F.normalize(text_global_pool(x, ids, "argmax") @ model.text_projection, dim=-1)[0]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_positions_of_the_name(position: Position, tiny: LoadedModel) -> None:
    vectors = context(96)
    tokens = make_tokens(tiny.tokenizer, NAMES, Layout.free(4, position))
    learned = encode_learned(tiny.model, tokens, vectors)
    for row, name in zip(learned, NAMES, strict=True):
        expected = assembled(tiny.model, tiny.tokenizer, vectors, name, position)
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)
    own = torch.stack([vectors, context(96, seed=1), context(96, seed=2)])
    specific = encode_learned(tiny.model, tokens, own)
    assert torch.allclose(specific[0], learned[0], atol=1e-6)
    assert not torch.allclose(specific[1], learned[1], atol=1e-3)


def test_no_more_context_than_there_is_room_for(tiny: LoadedModel) -> None:
    longest = max(len(tiny.tokenizer.encode(f"{name}.")) for name in NAMES)
    assert fitting_tokens(tiny.tokenizer, NAMES, 16) == 16 - 2 - longest
    assert fitting_tokens(tiny.tokenizer, NAMES, 3) == 3
    with pytest.raises(ModelError, match="fills the model's context of 16 tokens, without room for learned prompts"):
        fitting_tokens(tiny.tokenizer, ["cat", "very " * 20], 3)


def by_hand(visual: Any, x: Tensor, vectors: Tensor) -> Tensor:
    """A ViT with vectors behind its patches, in the first two blocks."""
    patches = visual.conv1(x).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), patches], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, vectors[0].expand(len(x), -1, -1)], dim=1))
    x = visual.transformer.resblocks[0](x)
    x = visual.transformer.resblocks[1](torch.cat([x[:, :17], vectors[1].expand(len(x), -1, -1)], dim=1))
    pooled: Tensor = visual.ln_post(x[:, 0]) @ visual.proj
    return pooled


def both_towers(model: LoadedModel) -> LearnedPrompts:
    torch.manual_seed(0)
    vision, words = torch.randn(2, 2, 32), torch.randn(2, 16)
    return LearnedPrompts("fap", Layout("a photo of a", 2), words, None, vision, base=base_of(model), label="file")


def test_prompts_are_no_weights(vit: str, tmp_path: Path) -> None:
    """A model that is scored with some is not written or trained without them, and a file of them is no model."""
    path = tmp_path / "run" / "prompts.safetensors"
    path.parent.mkdir()
    path.write_bytes(both_towers(load_model(vit)).to_bytes())
    model = with_prompts(load_model(vit), read_prompts(path))
    out = tmp_path / "out"
    calls: tuple[Callable[[], object], ...] = (
        lambda: clipguard.convert(model, out),
        lambda: clipguard.convert(model, out, to="hf"),
        lambda: clipguard.merge(model, vit, 0.5, out),
        lambda: clipguard.merge(vit, model, 0.5, out),
        lambda: clipguard.finetune("tecoa", model=model, dataset="emoji-food", out=out),
    )
    for call in calls:
        with pytest.raises(ModelError, match=r"is scored with the learned prompts of .*, which are no weights"):
            call()
    for spec in (str(path), f"local-dir:{path.parent}", f"{path}@{vit}"):
        with pytest.raises(ModelError, match="holds learned prompts and no weights: name the model"):
            clipguard.convert(spec, out)
    assert not out.exists()


def test_vectors_in_the_image_tower(vit: str) -> None:
    model, x = load_model(vit), torch.rand(3, 3, 16, 16)
    model.text_features(NAMES, ["{}"])  # which is not what they say with prompts
    prompts = both_towers(model)
    plain, expected = model.model.visual(x), by_hand(model.model.visual, x, prompts.vision)
    before = model.tower_sha256
    made = with_prompts(model, prompts)
    torch.testing.assert_close(made.model.visual(x), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert made.tower_sha256 != before  # so that nothing of the other is recalled from a store
    copied = made.copy()
    assert copied.prompts is made.prompts
    assert torch.equal(copied.model.visual(x), made.model.visual(x))
    assert torch.equal(copied.text_features(NAMES, ["{}"]), made.text_features(NAMES, ["{}"]))
    assert copied.tower_sha256 == made.tower_sha256


def test_deeper_context_replaces_what_blocks_made_of_it(tiny: LoadedModel) -> None:
    """The first block's output at these places is put away, so that nothing before it matters there."""
    tokens = make_tokens(tiny.tokenizer, NAMES, Layout.free(4))
    deeper = torch.stack([context(96, seed=s) for s in (5, 6)])
    whole = encode_learned(tiny.model, tokens, context(96), deeper)
    assert not torch.allclose(whole, encode_learned(tiny.model, tokens, context(96)), atol=1e-3)
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
        for block in tiny.model.transformer.resblocks  # type: ignore[union-attr]
    ]
    encode_learned(tiny.model, tokens, context(96), deeper)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(seen[n][:, 1:5], deeper[n - 1].expand(3, -1, -1)) for n in (1, 2))


def test_a_file_gives_back_what_was_written(vit: str, tmp_path: Path) -> None:
    model = load_model(vit)
    prompts = both_towers(model)
    path = tmp_path / "run" / "prompts.safetensors"
    path.parent.mkdir()
    path.write_bytes(prompts.to_bytes())
    assert path.read_bytes() == prompts.to_bytes()
    read = read_prompts(path.parent)
    assert (read.layout, read.method, read.base) == (prompts.layout, "fap", prompts.base)
    assert read.deeper is None
    assert torch.equal(read.vision, prompts.vision)  # type: ignore[arg-type]
    assert prompts_label(str(path)) == "run"
    made = with_prompts(load_model(vit), read)
    assert made.info.text == f"2 learned context vectors in text and image tower (fap), from {path}"
    expected = encode_learned(model.model, make_tokens(model.tokenizer, NAMES, prompts.layout), prompts.context)
    assert torch.equal(made.text_features(NAMES, ["whatever {}"]).T, expected)


def test_a_checkpoint_of_apt_is_read(tiny: LoadedModel, tmp_path: Path) -> None:
    """As Dassl saves it; its prefix and suffix are of the training classes, and do not count."""
    path = tmp_path / "model.pth.tar-50"
    state = {"ctx": context(96).half(), "token_prefix": torch.zeros(3, 1, 96), "token_suffix": torch.zeros(3, 11, 96)}
    torch.save({"state_dict": state, "epoch": 50, "optimizer": {"lr": 0.002}, "val_result": np.float64(93.5)}, path)
    prompts = read_prompts(path)
    assert prompts.layout == Layout("X X X X", 4, "end")
    assert torch.equal(prompts.context, context(96).half().float())
    middle = read_prompts(f"{path}#position=middle")
    assert (middle.layout.position, prompts_label(f"{path}#position=middle")) == ("middle", "model.pth.tar-50")
    rows = [with_prompts(tiny.copy(), one).text_features(NAMES, ["{}"]).T for one in (prompts, middle)]
    torch.testing.assert_close(
        rows[1][1], assembled(tiny.model, tiny.tokenizer, middle.context, "polar bear", "middle")
    )
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    torch.save({"state_dict": {"ctx": torch.stack([context(96)] * 3)}}, path)
    with noticing() as notices:
        specific = with_prompts(tiny.copy(), read_prompts(path))
        torch.testing.assert_close(specific.text_features(NAMES, ["{}"]).T, encode_learned(
            tiny.model, make_tokens(tiny.tokenizer, NAMES, Layout.free(4)), context(96)
        ))  # fmt: skip
    assert "does not name the classes of its 3 context vectors: in the data's order" in notices[0]["text"]
    with pytest.raises(ModelError, match="has context vectors for 3 classes, and the data has 2"):
        specific.text_features(NAMES[:2], ["{}"])


def test_context_of_classes_goes_by_their_names(tiny: LoadedModel) -> None:
    own = torch.stack([context(96, seed=s) for s in range(3)])
    prompts = LearnedPrompts("apt", Layout.free(4), own, class_names=tuple(NAMES), label="FILE")
    whole = prompts.encode(tiny.model, tiny.tokenizer, NAMES).T
    two = prompts.encode(tiny.model, tiny.tokenizer, [NAMES[2], NAMES[0]]).T
    torch.testing.assert_close(two, whole[[2, 0]], atol=1e-6, rtol=1e-5)
    with pytest.raises(ModelError, match="FILE has context vectors for its 3 training classes alone, without 'dog'"):
        with_prompts(tiny.copy(), prompts).check_text(["dog"], ["{}"], duplicates=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .*p.safetensors: `finetune --method apt` writes prompts.safetensors"),
        (b"\x80\x05nothing", "p.safetensors"),
        ({"other": torch.zeros(2)}, "p.safetensors holds no prompts: neither clipguard's"),
    ],
)
def test_what_is_no_prompt_file(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        read_prompts(path)


def test_what_a_model_does_not_take(
    tiny: LoadedModel, vit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_vit = both_towers(load_model(vit))
    with pytest.raises(ModelError, match=r"are 16 wide, and the text tower of tiny is 96 wide; they were learned on"):
        with_prompts(tiny.copy(), replace(of_vit, vision=None))
    wider = replace(both_towers(load_model(vit)), vision=torch.zeros(2, 2, 64))
    with pytest.raises(ModelError, match=r"are 64 wide, and the image tower of .* is 32 wide; they were learned on"):
        with_prompts(load_model(vit), wider)
    deeper = replace(of_vit, vision=torch.zeros(3, 2, 32))
    with pytest.raises(ModelError, match="for more blocks than the image tower of"):
        with_prompts(load_model(vit), deeper)
    in_text = LearnedPrompts("apt", Layout.free(4), context(96), base=base_of(tiny), label="FILE")
    with pytest.raises(ModelError, match=r"Prompts in the image tower stand among .* that of tiny is TimmModel"):
        with_prompts(tiny.copy(), replace(in_text, vision=torch.zeros(1, 4, 32)))
    with pytest.raises(ModelError, match="tiny has learned prompts already"):
        with_prompts(with_prompts(tiny.copy(), in_text), in_text)
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        with_prompts(load_model(write_vit(tmp_path / "other", seed=1)), of_vit)
    assert "which has another image tower and another text tower; it is scored with them all the" in caplog.text


def test_a_text_tower_of_transformers_is_refused_by_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    ).save_pretrained(tmp_path)
    model = torch.nn.Module()
    model.text = HFTextEncoder(str(tmp_path), output_dim=4, pretrained=False)
    with pytest.raises(ModelError, match="open_clip's own text towers; that of mine is HFTextEncoder: choose another"):
        text_tower(model, "mine")
