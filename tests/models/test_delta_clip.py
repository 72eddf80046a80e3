"""Delta-CLIP: its layout built from scratch, its order of tokens, its image tower, and what cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.errors import ModelError
from clipguard.core.notices import noticing
from clipguard.models import load_model
from clipguard.models.convert import convert_files
from clipguard.models.inspection import inspect_model
from clipguard.models.prompts.text import Layout, fitting_tokens, make_tokens, words_embedding
from clipguard.models.text.encoding import find_cut
from clipguard.models.text.wordpiece import WordPieceTokenizer

# Where tokens stand in the 30,522 lines of BERT's vocabulary with [bos] and [eos] in lines 1 and 2.
LINES = {
    0: "[PAD]", 1: "[bos]", 2: "[eos]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1010: ",", 1012: ".",
    1037: "a", 1996: "the", 1997: "of", 2015: "##s", 2102: "##t", 2135: "##ly", 2702: "ten", 2751: "gold", 2818: "##ch",
    3746: "image", 3899: "dog", 4937: "cat", 6302: "photo", 7529: "##fish", 10177: "##gne", 16403: "diagram",
    21388: "bei",
}  # fmt: skip
IMAGE = {
    "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "no_ln_pre": True,
    "pool_type": "avg", "final_ln_after_pool": True,
}  # fmt: skip
TEXT = {
    "context_length": 12, "vocab_size": 30522, "vocab_path": "./open_clip/bert_base_vocab_bos_eos.txt", "width": 16,
    "heads": 2, "layers": 2, "pool_type": "last", "no_causal_mask": True, "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip
CONFIG = {"embed_dim": 16, "vision_cfg": IMAGE, "text_cfg": TEXT}
ROWS = 32000
NAMES, TEMPLATE = ["dog", "cat", "goldfish"], "a photo of a {}."
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def write_vocabulary(path: Path, end: str = "\n", **other: str) -> Path:
    lines = [LINES.get(number, f"[unused{number}]") for number in range(30522)]
    changed = {int(key.removeprefix("line")): token for key, token in other.items()}
    path.write_text("".join(changed.get(number, line) + end for number, line in enumerate(lines)), newline="")
    return path


def write_config(folder: Path, preprocess: dict[str, Any], **text: Any) -> None:
    config = {**CONFIG, "text_cfg": {**TEXT, **text}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones, of a model that open_clip builds from the config without its vocabulary."""
    folder = tmp_path_factory.mktemp("weights")
    text = {key: value for key, value in TEXT.items() if key != "vocab_path"} | {"vocab_size": ROWS}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CONFIG, "text_cfg": text}}))
    torch.manual_seed(0)
    with quiet_libraries():
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    assert not any("ln_pre" in name for name in model.state_dict())
    torch.nn.init.normal_(model.positional_embedding)
    torch.nn.init.normal_(model.token_embedding.weight)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    """As on the hub: config, pickled weights, vocabulary with Windows' line ends."""
    made = tmp_path / "delta_clip_renamed"
    made.mkdir()
    write_config(made, {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bilinear"})
    write_vocabulary(made / "vocab.txt", "\r\n")
    torch.save(load_file(weights), made / "open_clip_pytorch_model.bin")
    return made


def refusal(spec: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("a dog", 8, [1, 1037, 3899, 2, 0, 0, 0, 101]),
        ("A Diagram", 8, [1, 1037, 16403, 2, 0, 0, 0, 101]),
        ("a photo of a cat.", 12, [1, 1037, 6302, 1997, 1037, 4937, 1012, 2, 0, 0, 0, 101]),
        ("beignet", 8, [1, 21388, 10177, 2102, 2, 0, 0, 101]),
        ("Béignets,  goldfish", 10, [1, 21388, 10177, 2102, 2015, 1010, 2751, 7529, 2, 101]),
        ("a zebra [CLS]", 9, [1, 1037, 100, 100, 100, 100, 2, 0, 101]),  # no special token is read from a text
        ("a a a a a a a", 8, [1, 1037, 1037, 1037, 1037, 1037, 2, 101]),  # cut, with its [eos]
        ("", 5, [1, 2, 0, 0, 101]),
    ],
)
def test_token_ids_computed_by_hand(text: str, length: int, expected: list[int], end: str, tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer(write_vocabulary(tmp_path / "vocab.txt", end), 77)
    assert tokenizer([text], context_length=length).tolist() == [expected]
    assert len(tokenizer(text)[0]) == 77
    assert tokenizer.vocab_size == 30522


def test_a_row_does_not_depend_on_the_other_texts(tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer(write_vocabulary(tmp_path / "vocab.txt"), 8)
    texts = ["a photo of the cat, the dog, the image", "a dog", "the " * 20, "a a a a a"]
    for order in (texts, texts[::-1]):
        assert torch.equal(tokenizer(order), torch.cat([tokenizer([text]) for text in order]))
    assert find_cut(tokenizer, texts, tokenizer(texts)) == [0, 2]  # the last one just fits


def test_berts_own_vocabulary_is_read_as_the_one_with_two_lines_changed(tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer(write_vocabulary(tmp_path / "vocab.txt", line1="[unused0]", line2="[unused1]"), 8)
    assert tokenizer("a dog").tolist() == [[1, 1037, 3899, 2, 0, 0, 0, 101]]


def test_it_scores_as_computed_by_hand(folder: Path, weights: Path) -> None:
    loaded = load_model(f"local-dir:{folder}")
    info, state = loaded.info, load_file(weights)
    assert (info.activation, info.mean, info.interpolation) == ("GELU", (0.485, 0.456, 0.406), "bilinear")
    assert info.detected == (f"vocabulary of {ROWS} rows, as the weights have (its config: 30522)",)
    visual = loaded.model.visual
    normalized = (PIXELS - torch.tensor(info.mean).view(3, 1, 1)) / torch.tensor(info.std).view(3, 1, 1)
    with torch.no_grad():
        patches = F.conv2d(normalized, state["visual.conv1.weight"], stride=16).flatten(2).mT
        tokens = torch.cat([state["visual.class_embedding"].expand(3, 1, -1), patches], 1)
        seen = visual.transformer(tokens + state["visual.positional_embedding"])[:, 1:].mean(1)
        image = F.layer_norm(seen, (32,), state["visual.ln_post.weight"], state["visual.ln_post.bias"])
        image = F.normalize(image @ state["visual.proj"], dim=1)
        ids = torch.tensor([
            [1, 1037, 6302, 1997, 1037, 3899, 1012, 2, 0, 0, 0, 101],
            [1, 1037, 6302, 1997, 1037, 4937, 1012, 2, 0, 0, 0, 101],
            [1, 1037, 6302, 1997, 1037, 2751, 7529, 1012, 2, 0, 0, 101],
        ])  # fmt: skip
        words = loaded.model.transformer(state["token_embedding.weight"][ids] + state["positional_embedding"])[:, -1]
        text = F.layer_norm(words, (16,), state["ln_final.weight"], state["ln_final.bias"]) @ state["text_projection"]
        expected = state["logit_scale"].exp() * image @ F.normalize(text, dim=1).T
    logits = loaded.classifier(NAMES, [TEMPLATE])(PIXELS)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    assert (logits[:, :1] - logits[:, 1:]).abs().min() > 1e-3  # names tell


def test_the_mean_over_patches_and_not_the_class_token(folder: Path) -> None:
    visual = load_model(f"local-dir:{folder}").model.visual
    with torch.no_grad():
        before = visual(PIXELS)
        swapped = torch.cat([PIXELS[..., 16:, :], PIXELS[..., :16, :]], dim=2)
        position = visual.positional_embedding.clone()
        visual.positional_embedding.copy_(position[[0, 3, 4, 1, 2]])  # patches and their places move together
        torch.testing.assert_close(visual(swapped), before, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(visual(PIXELS), before, rtol=1e-3, atol=1e-3)


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(f"local-dir:{folder}")
    for name, content in convert_files(loaded, "open_clip").items():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    again = load_model(f"local-dir:{tmp_path / 'out'}")
    assert (tmp_path / "out" / "bert_base_vocab_bos_eos.txt").is_file()
    assert torch.equal(again.text_features(NAMES, [TEMPLATE]), loaded.text_features(NAMES, [TEMPLATE]))
    assert "create_model" not in (tmp_path / "out" / "README.md").read_text()  # open_clip has no vocab_path
    with pytest.raises(ModelError, match="no counterpart in transformers"):
        convert_files(loaded, "hf")
    assert inspect_model(f"local-dir:{folder}").command == f"clipguard bench --model local-dir:{folder}"


def test_preprocessing_that_is_not_stated_is_imagenets(folder: Path) -> None:
    write_config(folder, {}, vocab_size=ROWS)
    with noticing() as notices:
        loaded = load_model(f"local-dir:{folder}")
    info = loaded.info
    assert (info.mean, info.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert info.interpolation == "bilinear"
    assert "assumed mean, std, interpolation of Delta-CLIP's code" in info.detected[0]
    assert any("assumed mean" in str(notice) for notice in notices)


def test_what_cannot_be_scored_is_refused(folder: Path) -> None:
    spec, vocabulary = f"local-dir:{folder}", folder / "vocab.txt"
    write_vocabulary(vocabulary, line101="[class]")
    assert "vocab.txt lacks [CLS]: it is not the vocabulary" in refusal(spec)
    write_vocabulary(vocabulary, line0="[pad]", line7="[PAD]")
    assert "does not begin with [PAD]" in refusal(spec)
    write_vocabulary(vocabulary, line7="dog")
    assert "has a token twice" in refusal(spec)
    write_vocabulary(vocabulary)
    vocabulary.write_text(vocabulary.read_text() + "".join(f"more{n}\n" for n in range(1500)))
    assert "has 32022 tokens, and the text tower of open_clip_config.json" in refusal(spec)
    vocabulary.unlink()
    assert "has no bert_base_vocab_bos_eos.txt or vocab.txt, the vocabulary that its config names" in refusal(spec)
    write_vocabulary(vocabulary)
    write_config(folder, {}, position="rotary")
    assert "open_clip cannot build open_clip_config.json" in refusal(spec)
    assert "fits no architecture that open_clip knows" in refusal(str(folder / "open_clip_pytorch_model.bin"))
    assert "missing: visual.ln_pre.weight" in refusal(f"ViT-B-32:{folder / 'open_clip_pytorch_model.bin'}")


def test_from_the_hubs_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "hub" / "models--zw123--delta_clip_l14_224"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    (root / "snapshots").mkdir()
    expected = load_model(f"local-dir:{folder}").text_features(NAMES, [TEMPLATE])
    folder.rename(root / "snapshots" / "0123abc")
    loaded = load_model("hf-hub:zw123/delta_clip_l14_224")
    assert torch.equal(loaded.text_features(NAMES, [TEMPLATE]), expected)


def test_learned_prompts_are_refused(folder: Path) -> None:
    """Texts end with a token that is no padding."""
    loaded = load_model(f"local-dir:{folder}")
    with pytest.raises(ModelError, match="a token behind that, as Delta-CLIP's"):
        words_embedding(loaded.model, loaded.tokenizer, "a photo", "mine")
    with pytest.raises(ModelError, match="a token behind that"):
        fitting_tokens(loaded.tokenizer, ["cat"], 2)
    with pytest.raises(ModelError, match="a token behind that"):
        make_tokens(loaded.tokenizer, ["cat", "dog"], Layout.free(1, "front"))


def test_a_vocabulary_that_is_cut_is_refused(folder: Path) -> None:
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "vocab.txt").write_text("".join(lines[:20_000]), encoding="utf-8")
    with pytest.raises(ModelError, match=r"has 20000 tokens, .* knows 32000: the file is cut"):
        load_model(f"local-dir:{folder}")
