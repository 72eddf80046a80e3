"""TIMA's diagnostics on cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipguard.attacks.losses import margin
from clipguard.finetuning.diagnostics import (
    margin_offset,
    margin_similarity_correlation,
    mean_margins,
    text_diagnostics,
)

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 4.0], [2.0, 2.5, 1.0]])
LABELS = torch.tensor([0, 1, 0])


def test_margins_and_their_offset() -> None:
    assert margin(LOGITS, LABELS).tolist() == [2.0, -3.0, -0.5]
    weaker = LOGITS.clone()
    weaker[:, 2] += torch.tensor([5.0, 1.0, 2.0])
    assert margin(weaker, LABELS).tolist() == [-2.0, -4.0, -1.0]
    assert mean_margins({8.0: weaker, 1.0: LOGITS}, LABELS) == {1.0: -0.5, 8.0: pytest.approx(-7 / 3)}
    mean, deviation = margin_offset(LOGITS, weaker, LABELS)
    assert (mean, deviation) == (pytest.approx(5.5 / 3), pytest.approx(torch.tensor([4.0, 1.0, 0.5]).std().item()))


def test_margins_that_fall_with_similarity_correlate_at_minus_one() -> None:
    """For unit images equal to their class texts, logit y - logit k is scale (1 - cos), exactly linear in cos."""
    text = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 1, 3, 3])  # classes 2 and 4 have no image
    logits = 100 * text[labels] @ text.T
    assert margin_similarity_correlation(logits, labels, text) == pytest.approx(-1, abs=1e-5)
    assert margin_similarity_correlation(-logits, labels, text) == pytest.approx(1, abs=1e-5)


def test_text_diagnostics() -> None:
    original = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 3.0]]), dim=1)
    same = text_diagnostics(original, original)
    assert same["spearman"] == pytest.approx(1)
    cosines = [2**-0.5, 10**-0.5, 20**-0.5]
    assert same["mean_cosine"] == pytest.approx(sum(cosines) / 3)
    assert same["mhe"] == pytest.approx(sum(1 / (3 - 2 * c) for c in cosines) / 3)
    reversed_order = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 9.0, 0.0], [1.0, 1.0, 0.0]]), dim=1)
    cos = reversed_order @ reversed_order.T  # 0-1 is now the farthest pair, 1-2 the nearest
    assert cos[0, 1] < cos[0, 2] < cos[1, 2]
    assert text_diagnostics(reversed_order, original)["spearman"] == pytest.approx(-1)
