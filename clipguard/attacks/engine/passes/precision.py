"""How exactly a model computes: float32, TF32 or bfloat16, as it is or compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from clipguard.core.errors import AttackError, first_line

log = logging.getLogger("clipguard")


@contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Whether CUDA may round the inputs of float32 products to TF32; left alone, PyTorch's convolutions do."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def logits_at(precision: str, model: nn.Module, x: Tensor) -> Tensor:
    """Float32 logits (B, classes) of images (B, C, H, W), computed at a precision (`PRECISIONS`).

    Raises:
        AttackError: for outputs that are no logits.
    """
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with tf32(x.device, precision != "float32"), autocast:
        logits: Tensor = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise AttackError(f"The model must map {tuple(x.shape)} pixels to (batch, classes >= 2) logits, not {what}.")
    return logits


class CompiledModel:
    """The model compiled, for as long as that works.

    Args:
        model: in eval mode.
        precision: at which it runs.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.precision = precision
        on_gpu = any(p.is_cuda for p in chain(model.parameters(), model.buffers()))
        mode = "reduce-overhead" if on_gpu else "default"  # CUDA graphs
        self._compiled: nn.Module | None = torch.compile(model, dynamic=False, mode=mode)  # type: ignore[assignment]

    def logits(self, x: Tensor) -> Tensor | None:
        """(B, classes) float32 logits, for few different B; None where the model has to run as it is."""
        if self._compiled is None:
            return None
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            return logits_at(self.precision, self._compiled, x).float().clone()
        except torch._dynamo.exc.TorchDynamoException as error:
            log.warning("This model cannot be compiled here; going on without `compile` (%s).", first_line(error))
            self._compiled = None
            return None
