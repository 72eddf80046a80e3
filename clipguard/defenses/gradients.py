"""Gradients that defences take of a classifier, of images that do not influence each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Objective = Callable[[Tensor], Tensor]  # images (B, ...) -> (B,) values


def gradient(objective: Objective, x: Tensor) -> Tensor:
    """Of an objective (B,) with respect to x (B, ...), as a constant."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(objective(leaf).sum(), leaf)[0].detach()


def live_gradient(objective: Objective, x: Tensor) -> Tensor:
    """The same as a differentiable function of x, which has a graph: second derivatives follow. See `twice`."""
    return torch.autograd.grad(objective(x).sum(), x, create_graph=True)[0]


@contextmanager
def twice() -> Iterator[None]:
    """Inside, attention has second derivatives: its fast kernels have none."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def soft_sign(gradients: Tensor) -> Tensor:
    """A smooth sign of gradients (B, ...): tanh of each over the mean absolute value of its image's."""
    size = gradients.detach().flatten(1).abs().mean(dim=1).clamp_min(1e-30)
    return torch.tanh(gradients / size.view(-1, *[1] * (gradients.ndim - 1)))
