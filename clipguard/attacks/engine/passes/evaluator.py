"""Passes through the model under attack, never silent about NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor, nn

from clipguard.attacks import losses
from clipguard.attacks.engine.costs import Costs
from clipguard.attacks.engine.options import Fill
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.batching import Batching, filled, fitting_batch_size, least_rows
from clipguard.attacks.engine.passes.precision import CompiledModel, logits_at, tf32
from clipguard.core.errors import AttackError, NoGradientError, NonFiniteError

Objective = Callable[[Tensor, int, int], Tensor]  # logits of rows [start, stop) -> (stop - start,) values


@dataclass(frozen=True)
class CleanPass:
    """What the model says of clean images.

    Attributes:
        examples: B of them, of one shape.
        x: (B, C, H, W), on the model's device.
        labels: (B,) class numbers.
        logits: (B, classes).
        predictions: the largest of each.
        margins: z_y - max z_k of each.
    """

    examples: Sequence[Example]
    x: Tensor
    labels: Tensor
    logits: Tensor
    predictions: list[int]
    margins: list[float]


class Evaluator:
    """A model under attack. Only the image ever gets a gradient.

    Args:
        model: frozen, in eval mode: pixels (B, C, H, W) in [0,1] -> logits (B, classes).
        batch_size: rows a pass at most; it shrinks when memory does not suffice.
        precision: of the search for adversarial images; `verify` is always float32.
        eot: logits and gradients are the mean over that many passes, for randomised models.
        compile: whether the search runs the compiled model; `verify` takes the model as it is.
        fill: how passes are filled up (see `filled`; black images are not counted). "alone": they are not, but `verify`
            passes every image by itself.
        small_rows: what passes of few images are filled up to (see `filled`, there `small`).
        judge: decides what an image is taken for, where that is not `model` itself: the same to logits.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        precision: str = "float32",
        eot: int = 1,
        compile: bool = False,
        fill: Fill = "least",
        small_rows: int | None = None,
        judge: nn.Module | None = None,
    ) -> None:
        self.judge = judge or model
        self.model, self.precision, self.eot, self.fill, self.small_rows = model, precision, eot, fill, small_rows
        self.costs = Costs(eot, on_gpu=any(p.is_cuda for p in chain(model.parameters(), model.buffers())))
        self._batching = Batching(batch_size, eot)
        self._compiled = CompiledModel(model, precision) if compile else None

    @property
    def batch_size(self) -> int:
        """Rows a pass at most, as things stand."""
        return self._batching.size

    def fit_batches(self, stream: Iterator[Example]) -> Iterator[Example]:
        """Choose the batch size by the first image of a stream, and give the stream back whole."""
        examples = list(islice(stream, 1))
        if examples:
            self._batching.size = self.fitting_batch_size(examples[0].image)
        return chain(examples, stream)

    def fitting_batch_size(self, image: Tensor) -> int:
        """How many images (C, H, W) like this one fit into memory while they are attacked."""

        def gradient_pass(x: Tensor) -> None:
            self._batching.size = len(x)
            self.gradient(x, lambda logits, _start, _stop: logits[:, 0])

        return fitting_batch_size(image, gradient_pass)

    def predict(self, examples: Sequence[Example]) -> CleanPass:
        """A pass of clean images of one shape.

        Raises:
            AttackError: for images outside [0,1], labels that are no class, and NaN.
        """
        x = torch.stack([e.image for e in examples]).float()
        labels = torch.tensor([e.label for e in examples]).to(x.device, non_blocking=True)
        low, high = x.flatten(1).amin(dim=1), x.flatten(1).amax(dim=1)
        with self.costs.charged({"clean": len(x)}, {}):
            logits = self.verify(x)
        known = labels.clamp(0, logits.shape[1] - 1)  # whether they are is asked below
        inside, finite = (low >= 0) & (high <= 1), torch.isfinite(logits.sum(dim=1))
        columns = (inside, finite, logits.argmax(dim=1), losses.margin(logits, known))
        are_inside, are_finite, predictions, margins = torch.stack([c.double() for c in columns]).tolist()
        for e, is_inside in zip(examples, are_inside, strict=True):
            if not is_inside:
                message = f"Images must lie in [0,1] (image {e.index}); normalisation belongs inside the model."
                raise AttackError(message)
            if not 0 <= e.label < logits.shape[1]:
                classes = f"0 ... {logits.shape[1] - 1}, the classes the model knows"
                raise AttackError(f"Labels must lie in {classes}; image {e.index} has {e.label}.")
        if not all(are_finite):
            require_finite(logits, lambda i: examples[i].index, "on the clean image")
        return CleanPass(examples, x, labels, logits, [int(p) for p in predictions], margins)

    def verify(self, x: Tensor) -> Tensor:
        """(B, C) logits in float32, of the judge as it is: these decide what an image is taken for."""

        def one(chunk: Tensor, _start: int, _stop: int) -> tuple[Tensor, ...]:
            return (self._as_it_is(chunk, "float32", self.judge),)

        if self.fill != "alone":
            return self._batching.run(x, one)[0]
        # A copy: where in memory a row begins may matter, too.
        return torch.cat([self._batching.run(row.clone(), one)[0] for row in torch.split(x, 1)])

    def logits(self, x: Tensor) -> Tensor:
        """(B, C) logits at search precision."""

        def one(chunk: Tensor, _start: int, _stop: int) -> tuple[Tensor, ...]:
            return (self._search(chunk),)

        return self._batching.run(x, one)[0]

    def gradient(self, x: Tensor, objective: Objective) -> tuple[Tensor, ...]:
        """Logits (B, C), objective (B,) and its gradient (B, C, H, W) with respect to each row.

        Raises:
            NoGradientError: if the model passes none to its input.
        """

        def one(chunk: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
            leaf = chunk.detach().requires_grad_()
            with torch.enable_grad(), tf32(leaf.device, self.precision != "float32"):
                logits = self._search(leaf)
                values = objective(logits, start, stop)
                grad = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if logits.requires_grad else None
            if grad is None:
                raise NoGradientError("The model passes no gradient to its input: it cannot be attacked by gradients.")
            # contiguous: the gradient of a sum is one number seen many times, and attacks write in place; a copy of
            # what a CUDA graph gives, which its next run writes over
            return logits.detach(), values.detach(), grad.clone() if self._compiled else grad.contiguous()

        return self._batching.run(x, one)

    def _search(self, x: Tensor) -> Tensor:
        """Logits at search precision, by the compiled model if there is one and it works."""
        if self._compiled is None:
            return self._as_it_is(x, self.precision, self.model)
        logits = self._compiled.logits(self._filled(x, fixed=True))
        return self._as_it_is(x, self.precision, self.model) if logits is None else logits[: len(x)]

    def _as_it_is(self, x: Tensor, precision: str, model: nn.Module) -> Tensor:
        rows = self._filled(x, fixed=x.device.type == "cuda")
        return logits_at(precision, model, rows)[: len(x)].float()

    def _filled(self, x: Tensor, *, fixed: bool) -> Tensor:
        least = least_rows(self.model)
        return filled(x, self.fill, least, self.batch_size, small=self.small_rows, fixed=fixed)


def require_finite(values: Tensor, index: Callable[[int], int], where: str) -> None:
    """Stop at values (B, ...) that are no numbers.

    Args:
        values: logits or gradients.
        index: of the image, by row.
        where: for the message.

    Raises:
        NonFiniteError: with the image's index, if a value is NaN or infinite.
    """
    if torch.isfinite(values.sum()):  # cheap: one pass; a sum may also overflow, so look again
        return
    bad = (~torch.isfinite(values.flatten(1))).any(dim=1)
    if bad.any():
        raise NonFiniteError(
            f"The model gives NaN or infinite values {where} (image {index(int(bad.nonzero()[0]))}); its numbers "
            "cannot be trusted. Check the weights, and use float32."
        )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients (no activations are kept for them), restored afterwards.

    Raises:
        AttackError: for a model in train mode, or one that can have no gradients.
    """
    if any(m.training for m in model.modules()):
        raise AttackError("The model is in train mode; call model.eval() before attacking it.")
    if any(p.is_inference() for p in model.parameters()):
        raise AttackError("The model was made inside torch.inference_mode(), so it has no gradients; make it outside.")
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
