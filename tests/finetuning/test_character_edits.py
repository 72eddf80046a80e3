"""The attack on characters: within its budget and its constraint, deterministic, and the worst of what it tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipguard.finetuning.captions.character_attack import edit_captions
from clipguard.finetuning.captions.encoder import token_ids, vocabulary
from clipguard.finetuning.methods.captions.edits import (
    SYMBOLS,
    CharacterEdits,
    edit,
    keeps_words,
    slots,
    words_of,
)

CAPTIONS = ["a drawing of a cat.", "two dogs on a boat", "é!", "x"]
KEYS = [11, 22, 33, 44]


def levenshtein(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def differences(rows: list[list[str]]) -> Tensor:
    """Scores texts by a sum over their characters, which nearly any two have different."""
    return torch.tensor([[sum((i + 1) * ord(c) for i, c in enumerate(t)) % 9973.0 for t in row] for row in rows])


def test_one_edit_is_one_insertion_replacement_or_deletion() -> None:
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 96
    assert slots("cat") == 7
    assert [edit("cat", slot, "x") for slot in range(7)] == [
        "xcat", "xat", "cxat", "cxt", "caxt", "cax", "catx",
    ]  # fmt: skip
    assert edit("cat", 3, "") == "ct"
    assert edit("cat", 3, "a") == "ct"  # it stands there already
    assert edit("cat", 2, "") == "cat"
    for slot in range(7):
        assert all(levenshtein("cat", edit("cat", slot, symbol)) <= 1 for symbol in SYMBOLS)


def test_a_constrained_edit_makes_no_other_word() -> None:
    words = frozenset({"cat", "at", "a", "car", "boat"})
    assert words_of("A cat, a CAT!") == {"a", "cat"}
    assert keeps_words("a cxt", "a cat", words)
    assert not keeps_words("a car", "a cat", words)  # another word
    assert not keeps_words("a at", "a cat", words)
    assert not keeps_words("a c at", "a cat", words)
    assert not keeps_words("a cat", "a cat", words)  # as it was
    assert not keeps_words("a cat!", "a cat", words)  # destroys nothing
    assert not keeps_words("a zzx", "a zzz", words)  # has no word to lose


def test_the_vocabulary_has_english_words_and_those_of_the_captions() -> None:
    words = vocabulary([("a drawing of a zyzzyva",), ("QX7 engine",)])
    assert {"cat", "house", "the", "zyzzyva", "qx7"} <= words
    assert not {"cxt", "zzx", "!"} & words


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("constrain", [False, True])
def test_edits_stay_within_budget_and_constraint(k: int, constrain: bool) -> None:
    words = vocabulary([(caption,) for caption in CAPTIONS])
    edited, found = edit_captions(CAPTIONS, KEYS, CharacterEdits(k, 20, constrain), words, differences)
    assert [levenshtein(a, b) <= k for a, b in zip(CAPTIONS, edited, strict=True)] == [True] * 4
    assert edited != CAPTIONS
    assert found.shape == ()
    if constrain:
        for before, after in zip(CAPTIONS, edited, strict=True):
            assert words_of(after) & words <= words_of(before) & words
            assert after == before or len(words_of(after) & words) < len(words_of(before) & words)


def test_a_caption_s_edits_depend_on_its_key_alone() -> None:
    edits, score = CharacterEdits(2, 10, False), differences
    together, _ = edit_captions(CAPTIONS, KEYS, edits, frozenset(), score)
    again, _ = edit_captions(CAPTIONS, KEYS, edits, frozenset(), score)
    alone = [edit_captions([c], [k], edits, frozenset(), score)[0][0] for c, k in zip(CAPTIONS, KEYS, strict=True)]
    others, _ = edit_captions(CAPTIONS, [k + 1 for k in KEYS], edits, frozenset(), score)
    assert together == again == alone
    assert together != others


def test_the_worst_of_what_was_tried_is_taken_and_nothing_that_helps_nobody() -> None:
    """With all places and symbols, one edit finds the largest of all edits at the place where a space did most."""

    def of_z(rows: list[list[str]]) -> Tensor:
        return torch.tensor([[float(text.count("z")) for text in row] for row in rows])

    everything = CharacterEdits(1, 200, False)
    edited, found = edit_captions(["cat"], [0], everything, frozenset(), of_z)
    assert edited[0].count("z") == 1
    assert found.item() == 1.0
    unhelpful, _ = edit_captions(["cat"], [0], everything, frozenset(), lambda rows: torch.zeros(1, len(rows[0])))
    assert unhelpful == ["cat"]


def test_captions_are_equal_by_their_tokens() -> None:
    ids = token_ids(torch.tensor([[1, 2, 0], [1, 3, 0], [1, 2, 0]]))
    assert ids[0] == ids[2] != ids[1]
    assert (ids >= 0).all()
