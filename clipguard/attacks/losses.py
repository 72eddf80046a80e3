"""Attack objectives: logits (B, C), labels (B,), targets (B,) -> (B,) values that the attack maximises."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def pick(logits: Tensor, classes: Tensor) -> Tensor:
    """(B, C), (B,) -> (B,): one logit a row."""
    return logits.gather(1, classes[:, None]).squeeze(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - max_{k != y} z_k: negative where the image is misclassified."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return pick(logits, labels) - others.amax(dim=1)


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(z)_y, as log(1 + exp(logsumexp_{k != y} z_k - z_y)).

    In this form value and gradient stay right where the softmax saturates: the usual one loses the label's share of
    the gradient, then everything, once the label's probability rounds to 1 (a lead of 17 in float32).
    """
    del targets
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return F.softplus(others.logsumexp(dim=1) - pick(logits, labels))


def negative_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y (Carlini & Wagner 2017, f_6 without the cut)."""
    del targets
    return -margin(logits, labels)


def target_difference(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y."""
    return pick(logits, targets) - pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6): -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)).

    With two classes there is no third logit; the plain margin takes its place. The floor under the denominator is
    for tied logits (two classes of one name): clamping, unlike adding, keeps their gradient finite.
    """
    del targets
    if logits.shape[1] < 3:
        return -margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return -margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted DLR (Croce & Hein 2020, eq. 7): -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

    With fewer than four classes, the plain difference: z_(1) - z_(3) would make the loss constant for the third class.
    """
    difference = target_difference(logits, labels, targets)
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / (top[:, 0] - top[:, 2:].mean(dim=1)).clamp_min(1e-12)
