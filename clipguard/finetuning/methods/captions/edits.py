"""Edits of characters, the threat to a text: what one edit is, and which keep a sentence's words."""

from __future__ import annotations

import re
import string
from collections.abc import Set
from dataclasses import dataclass

# Of LEAF's code, 96 of them; "" deletes a character.
SYMBOLS = ["", *(string.ascii_lowercase + " " + string.ascii_uppercase + string.digits + string.punctuation)]
PROBE = " "


@dataclass(frozen=True)
class CharacterEdits:
    """The budget of an attack on characters.

    Attributes:
        k: edits at most (the Levenshtein distance).
        rho: places that are tried for each edit, and then symbols there.
        constrain: whether an edit must leave a sentence with fewer different words of the vocabulary (LEAF's rule: as a
            word becomes another one their number stays, but two may become one).
    """

    k: int
    rho: int
    constrain: bool


def slots(sentence: str) -> int:
    """Where one edit can be: at each character, and in each gap before, between and behind them."""
    return 2 * len(sentence) + 1


def edit(sentence: str, slot: int, symbol: str) -> str:
    """The sentence with a symbol in a gap (even slots), or in place of a character (odd ones).

    A symbol that stands there already deletes the character, as in LEAF's code.
    """
    at = slot // 2
    if slot % 2 == 0:
        return sentence[:at] + symbol + sentence[at:]
    return sentence[:at] + ("" if sentence[at] == symbol else symbol) + sentence[at + 1 :]


def words_of(text: str) -> set[str]:
    """Its different words in small letters: what is between spaces and punctuation."""
    return set(re.findall(r"\w+", text.lower()))


def keeps_words(edited: str, sentence: str, vocabulary: Set[str]) -> bool:
    """Whether an edited sentence has fewer different words of the vocabulary (LEAF)."""
    return len(words_of(edited) & vocabulary) < len(words_of(sentence) & vocabulary)
