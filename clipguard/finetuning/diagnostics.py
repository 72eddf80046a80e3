"""What TIMA's papers say happens to margins and texts, measured.

The AAAI abstract (doi 10.1609/aaai.v40i29.39603) claims a stable offset between logit margins under small and large
perturbations, and a negative correlation between logit margin and semantic similarity. How they are computed there is
not known to us; the definitions here are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from clipguard.attacks.losses import margin
from clipguard.finetuning.methods.classes.tima import hyperspherical_energy, off_diagonal


def mean_margins(logits: Mapping[float, Tensor], labels: Tensor) -> dict[float, float]:
    """Mean logit margin at each eps, from logits (B, C) of the same images at each."""
    return {eps: float(margin(values, labels).mean()) for eps, values in sorted(logits.items())}


def margin_offset(small: Tensor, large: Tensor, labels: Tensor) -> tuple[float, float]:
    """How much smaller an image's margin is at a large eps than at a small one: mean and standard deviation.

    A "stable" offset is one whose deviation is small beside its mean. `small`, `large`: logits (B, C).
    """
    offset = margin(small, labels) - margin(large, labels)
    return float(offset.mean()), float(offset.std())


def margin_similarity_correlation(logits: Tensor, labels: Tensor, text: Tensor) -> float:
    """Pearson's r between the margin of a pair of classes and the cosine of their texts (C, D), unit rows.

    The margin of (y, k), k != y, is the mean over the images of class y of logit y minus logit k. Classes without an
    image are left out.
    """
    present = labels.bincount().nonzero().flatten()
    pairs = torch.stack([(logits[labels == y, y][:, None] - logits[labels == y]).mean(dim=0) for y in present.tolist()])
    other = torch.ones_like(pairs, dtype=torch.bool).scatter(1, present[:, None], False)
    cosines = text[present] @ text.T
    return float(pearsonr(pairs[other].double().cpu(), cosines[other].double().cpu()).statistic)


def text_diagnostics(text: Tensor, original: Tensor) -> dict[str, float]:
    """How tuned texts (C, D) lie on the sphere, and how much of the original order of their similarities is left.

    `mean_cosine` over pairs; `mhe`, the bounded energy with alpha 2 (about 0.67 for CLIP's texts of one data set, 1/3
    for orthogonal ones); `spearman`, the rank correlation of all pairwise cosines with those of `original`, 1 if their
    order is unchanged. Unit rows; at least three classes.
    """
    cosines, before = off_diagonal(text @ text.T), off_diagonal(original @ original.T)
    return {
        "mean_cosine": float(cosines.mean()),
        "mhe": float(hyperspherical_energy(text)),
        "spearman": float(spearmanr(before.double().cpu(), cosines.double().cpu()).statistic),
    }
