"""The attack on captions, by LEAF (arXiv 2506.03355): characters are edited one after the other, greedily."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from clipguard.finetuning.methods.captions.edits import PROBE, SYMBOLS, CharacterEdits, edit, keeps_words, slots

USE = 8  # of a row's random numbers
Score = Callable[[list[list[str]]], Tensor]
"""Rows of R candidates each -> (B, R) values to maximise."""


def edit_captions(
    captions: Sequence[str], keys: Sequence[int], edits: CharacterEdits, vocabulary: Set[str], score: Score
) -> tuple[list[str], Tensor]:
    """Attack a batch of captions.

    For each edit, a space is tried at `rho` random places of each caption, then `rho` random symbols at the best one.
    What breaks the constraint does not count, and a caption stays as it is where nothing that was tried is worse.

    Args:
        captions: B of them.
        keys: of their random numbers, one each: a caption's edits do not depend on the others.
        edits: how many, and what is tried.
        vocabulary: words that no edit may make.
        score: what is maximised.

    Returns:
        The edited captions, and the mean of what was maximised, a scalar.
    """
    draws = [np.random.default_rng([key, USE]) for key in keys]
    current, values = list(captions), torch.zeros(len(captions))

    def best(candidates: list[list[str]]) -> tuple[list[str], list[int], Tensor]:
        """Of each row the candidate of the highest value, where it stands behind the caption itself, and the value."""
        allowed = [
            [s, *(c if not edits.constrain or keeps_words(c, s, vocabulary) else s for c in row)]
            for s, row in zip(current, candidates, strict=True)
        ]
        most = max(map(len, allowed))
        highest, at = score([row + [row[0]] * (most - len(row)) for row in allowed]).max(dim=1)
        places = at.tolist()
        return [(row + [row[0]] * most)[i] for row, i in zip(allowed, places, strict=True)], places, highest

    for _ in range(edits.k):
        places = [_draw(draw, slots(s), edits.rho) for draw, s in zip(draws, current, strict=True)]
        _, at, _ = best([[edit(s, p, PROBE) for p in row] for s, row in zip(current, places, strict=True)])
        # Where a space does nothing anywhere, the first of the places is as good as any.
        chosen = [row[i - 1 if 0 < i <= len(row) else 0] for row, i in zip(places, at, strict=True)]
        symbols = [[SYMBOLS[i] for i in _draw(draw, len(SYMBOLS), edits.rho)] for draw in draws]
        current, _, values = best(
            [[edit(s, p, symbol) for symbol in row] for s, p, row in zip(current, chosen, symbols, strict=True)]
        )
    return current, values.mean()


def _draw(draw: np.random.Generator, n: int, most: int) -> list[int]:
    """Different numbers below n, at most so many."""
    chosen: list[int] = draw.choice(n, size=min(n, most), replace=False).tolist()
    return chosen
