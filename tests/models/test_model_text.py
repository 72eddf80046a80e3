"""Prompts that a model cannot tell apart, and prompts that lose their end."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer

import clipguard
from clipguard.cli import run
from clipguard.core.errors import ModelError
from clipguard.core.notices import noticing
from clipguard.models.text.encoding import find_cut, tokenize

SIMPLE = open_clip.SimpleTokenizer(context_length=16)
ALIKE = {
    "case": ("Fruit", "fruit", "in case alone"),
    "HTML": ("fish &amp; chips", "fish & chips", "in HTML entities alone"),
    "spaces": ("red  thing", "red thing", "in spaces alone"),
    "length": ("word " * 20 + "cat", "word " * 20 + "dog", "cut to the same beginning"),
    "full width": ("ｃａｔ", "cat", "the tokenizer does not tell them apart"),
}


@pytest.mark.parametrize(("one", "other", "why"), ALIKE.values(), ids=ALIKE)
def test_two_names_of_the_same_tokens_are_refused_by_name_and_the_reason_is_given(
    one: str, other: str, why: str
) -> None:
    prompts = ["a photo of a {}.", "art of the {}"]
    for template in prompts:  # what open_clip says of them
        assert torch.equal(SIMPLE([template.replace("{}", one)]), SIMPLE([template.replace("{}", other)]))
    with pytest.raises(ModelError) as caught:
        tokenize(SIMPLE, ["boat", one, other], prompts)
    assert repr(one) in str(caught.value)
    assert repr(other) in str(caught.value)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    with noticing() as notices:  # the cure that is printed
        tokenize(SIMPLE, ["boat", one, other], prompts, duplicates=True)
    assert "1 of 3 classes have the prompts of another" in notices[-1]["text"]


def test_equal_names_were_allowed_by_whoever_gave_them() -> None:
    with noticing() as notices:
        tokenize(SIMPLE, ["crane", "boat", "crane"], ["a {}"])
    assert [n["text"].partition(":")[0] for n in notices] == [
        "1 of 3 classes have the prompts of another ('crane' = 'crane')"
    ]


def test_names_that_only_a_long_template_makes_alike_are_said(caplog: pytest.LogCaptureFixture) -> None:
    names = ["a small and very old grey cat", "a small and very old grey dog"]
    templates = ["a {}.", "one two three four five six seven eight nine {}."]
    with caplog.at_level(logging.WARNING, logger="clipguard"), noticing() as notices:
        tokenize(SIMPLE, names, templates)
    assert [n["kind"] for n in notices] == ["truncated", "truncated"]
    assert "2 of 2 classes have prompts longer than the model's context of 16 tokens" in notices[0]["text"]
    assert repr(names[0]) in notices[0]["text"]
    assert "in 1 of 2 (they are cut to the same beginning)" in notices[1]["text"]
    assert len(caplog.messages) == 2


def word_tokenizer(folder: Path, end: str, padding: str) -> HFTokenizer:
    """A tokenizer in transformers' layout: a token a word, and an end that is kept when the rest is cut."""
    words = ["[UNK]", end, *([padding] if padding != end else []), *(f"w{i}" for i in range(20)), "a"]
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "[UNK]"}
    final = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {end: {"id": end, "ids": [1], "tokens": [end]}},
    }
    added = [
        {"id": words.index(w), "content": w, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for w in dict.fromkeys(["[UNK]", end, padding])
    ]  # fmt: skip
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    whole |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": final, "decoder": None, "model": model}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": padding}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "[UNK]"}))
    return HFTokenizer(str(folder), context_length=6)


@pytest.mark.parametrize("padding", ["[PAD]", "</s>"])  # of BERT's kind, and of SigLIP's, which pads with the end
def test_cut_prompts_are_found_with_tokenizers_of_transformers(tmp_path: Path, padding: str) -> None:
    pytest.importorskip("transformers")
    tokenizer = word_tokenizer(tmp_path / "tokenizer", "</s>", padding)
    prompts = [" ".join(f"w{i}" for i in range(n)) for n in range(1, 12)]
    whole = [len(p.split()) + 1 for p in prompts]  # words and the end
    assert find_cut(tokenizer, prompts, tokenizer(prompts)) == [i for i, n in enumerate(whole) if n > 6]
    with pytest.raises(ModelError, match="does not tell them apart"):  # both are unknown
        tokenize(tokenizer, ["猫", "犬"], ["{}"])


@pytest.mark.parametrize("length", [5, 16, 77])
def test_cut_prompts_are_found_with_clips_own_tokenizer(length: int) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=length)
    prompts = [" ".join(["cat"] * n) for n in range(1, 90)]
    cut = [i for i, prompt in enumerate(prompts) if len(tokenizer.encode(prompt)) + 2 > length]
    assert find_cut(tokenizer, prompts, tokenizer(prompts)) == cut


def test_nothing_is_said_of_a_tokenizer_that_cannot_be_asked() -> None:
    assert find_cut(lambda texts: SIMPLE(texts), ["word " * 40], SIMPLE(["word " * 40])) == []


@pytest.mark.parametrize("command", ["bench", "attack", "doctor", "finetune"])
def test_every_command_refuses_them_before_it_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = clipguard.load_dataset("emoji-food").class_names
    (tmp_path / "names.txt").write_text("\n".join([names[0], names[0].capitalize(), *names[2:]]))
    options = ["--dataset", "emoji-food", "--classes", str(tmp_path / "names.txt")]
    options += {"bench": ["--attack", "none", "--no-store"], "finetune": ["--steps", "2"]}.get(command, [])
    assert run([command, *options]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "have the same tokens in every prompt (they differ in case alone" in last
