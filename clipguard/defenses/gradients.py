"""Gradients that defences take of a classifier, of images that do not influence each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

GATE_SLOPE = 10  # of the evidence that a gate has, over its threshold: how soft `soft_gate` is
Objective = Callable[[Tensor], Tensor]  # images (B, ...) -> (B,) values


def gradient(objective: Objective, x: Tensor) -> Tensor:
    """Of an objective (B,) with respect to x (B, ...), as a constant."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(objective(leaf).sum(), leaf)[0].detach()


def live_gradient(objective: Objective, x: Tensor) -> Tensor:
    """The same as a differentiable function of x: second derivatives follow. See `twice`.

    It is checkpointed: the passes are made again on the way back, so that many steps have the memory of one.
    """

    def taken(point: Tensor) -> Tensor:
        with twice():
            return torch.autograd.grad(objective(point).sum(), point, create_graph=True)[0]

    result: Tensor = checkpoint(taken, x, use_reentrant=False, preserve_rng_state=False)
    return result


@contextmanager
def twice() -> Iterator[None]:
    """Inside, attention has second derivatives: its fast kernels have none."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def affine(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An affine function of each row of x (B, D), with derivatives of any order.

    The logits of embeddings have a gradient of their own that is exact and can be taken only once. That of an affine
    function is linear, so its derivative is the function again.
    """
    result: Tensor = _Affine.apply(x, function)
    return result


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.function, ctx.zeros = function, torch.zeros_like(x)
        return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Transposed.apply(gradients[0], ctx.function, ctx.zeros), None


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, function: Callable[[Tensor], Tensor], zeros: Tensor) -> Tensor:
        ctx.function, ctx.zeros = function, zeros
        leaf = zeros.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(function(leaf), leaf, grad)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows = gradients[0]
        size = rows.detach().norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        unit = rows / size  # as the function expects
        return size * (affine(ctx.function, unit) - ctx.function(ctx.zeros)), None, None


def smooth_round(x: Tensor) -> Tensor:
    """round(x) + (x - round(x))^3 (Shin and Song 2017): near the whole numbers, and with a slope."""
    whole = x.detach().round()
    return whole + (x - whole) ** 3


def soft_sign(gradients: Tensor) -> Tensor:
    """A smooth sign of gradients (B, ...): tanh of each over the mean absolute value of its image's."""
    size = gradients.detach().flatten(1).abs().mean(dim=1).clamp_min(1e-30)
    return torch.tanh(gradients / size.view(-1, *[1] * (gradients.ndim - 1)))


def soft_gate(passing: Tensor, moved: Tensor, evidence: Tensor) -> Tensor:
    """Logits (B, classes) of a classifier whose gate is open by a probability, in place of yes or no.

    log(p softmax(passing) + (1 - p) softmax(moved)), p = sigmoid(evidence): where one side is right and the other is
    wrong, the gradient leads over the gate to the side that is wrong.

    Args:
        passing: logits (B, classes) of images that pass as clean.
        moved: logits (B, classes) of images that do not.
        evidence: (B,) for passing, 0 at the threshold, with a gradient.
    """
    open_side = F.logsigmoid(evidence)[:, None] + passing.log_softmax(dim=1)
    return torch.logaddexp(open_side, F.logsigmoid(-evidence)[:, None] + moved.log_softmax(dim=1))
