"""Adversarial weight perturbation: for one gradient, weights where the loss is higher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PROJECTIONS = ("proj", "text_projection")  # weights of open_clip that are not called so


def perturbed_weights(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices of a model.

    The published code takes tensors of rank 2 and more with "weight" in their name: no biases and norms. That finds
    `in_proj_weight` of fused attention, too. Added here are the last projections of open_clip's towers, matrices as
    well. Left out are embeddings of positions, classes and tokens: they are added to activations, as biases are.
    Singular values (`train=svd`) count as the matrices whose values they are.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.ndim >= 2
        and ("weight" in name or name.rpartition(".")[2] in PROJECTIONS)
        and id(parameter) not in tables
    ]


@contextmanager
def perturbed(parameters: Sequence[nn.Parameter], gamma: float) -> Iterator[None]:
    """Meanwhile, each tensor w with a gradient g is w + gamma |w| g / |g|; afterwards it has the bits that it had.

    AWP (Wu et al., NeurIPS 2020, arXiv 2004.05884) with one step of ascent, from no perturbation. The published code
    takes a step of a copy's SGD and scales it to gamma |w|: the size of that step cancels, and it is this. A tensor
    without a gradient, or with one of zero, stays.

    Args:
        parameters: the tensors, with the gradients of the loss that is to rise.
        gamma: size of the change of each, relative to its own Euclidean norm.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    with torch.no_grad():
        for parameter in moved:
            assert parameter.grad is not None
            parameter.add_(_direction(parameter, parameter.grad), alpha=gamma)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)


def _direction(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient's direction in the weight's size; no number is read from the device."""
    size, length = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
    direction: Tensor = gradient * (size / torch.where(length > 0, length, 1))
    return direction
