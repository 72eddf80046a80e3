"""One step of the optimisers: passes over its images, in parts that fit, and what changes the weights.

Nothing here reads a number from the device, so that a GPU is never made to wait for the next thing to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from clipguard.attacks.engine.passes.batching import is_out_of_memory
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch
from clipguard.finetuning.methods.base import Batch
from clipguard.finetuning.training.objective import Objective, batch_accuracy
from clipguard.finetuning.tuned.tuned_model import TunedModel

log = logging.getLogger("clipguard")
Scalars = dict[str, Tensor]


class Step:
    """One step of the optimisers, over `accumulate` batches, each in parts of at most `rows` images.

    A part's loss counts by its share of the batch: that is the loss of the whole batch, for methods whose loss is a
    mean over images. Where memory does not suffice and the size is clipguard's choice, parts are halved and the batch
    begins again.

    Attributes:
        rows: images of a part at most; None: a batch is not divided.
        tower: what pixels pass through in place of the image tower; None: the tower itself.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        accelerator: Accelerator,
        model: TunedModel,
        wrapped: nn.Module,
        objective: Objective,
        optimizers: dict[str, torch.optim.Optimizer],
    ) -> None:
        """`wrapped`, `optimizers`: as accelerate prepared them."""
        self.config, self.accelerator, self.objective = config, accelerator, objective
        self.model, self.wrapped, self.optimizers = model, wrapped, optimizers
        self.rows = config.batch_size if config.effective_batch else None
        self.tower: Callable[[Tensor], Any] | None = None

    def __call__(self, batches: Iterator[ImageBatch], progress: float, *, look: bool) -> tuple[list[Scalars], Scalars]:
        """Take the step.

        Args:
            batches: the next ones are taken.
            progress: of the run, from 0 to 1.
            look: whether clean accuracy is worth a pass where the method needs none.

        Returns:
            Scalars by name of each batch, and the norms of the gradients.
        """
        passes: list[Scalars] = []
        norms: Scalars = {}
        for _ in range(self.config.accumulate):
            with record_function("clipguard: data"):
                batch = next(batches)
            with self.accelerator.accumulate(self.wrapped):
                passes.append(self._pass(batch, progress, look))
                with record_function("clipguard: optimiser"):
                    if self.accelerator.sync_gradients:
                        norms = self._clip()
                    for optimizer in self.optimizers.values():
                        optimizer.step()
                        optimizer.zero_grad()
        return passes, norms

    def _pass(self, batch: ImageBatch, progress: float, look: bool) -> Scalars:
        """Add a batch's gradient, and return its scalars; in smaller parts where memory does not suffice."""
        while True:
            try:
                return self.gradient(batch, progress, look)
            except (MemoryError, RuntimeError) as error:
                # Of several processes, the others would wait for this one's gradients.
                halving = self.config.batch_size is None and self.rows != 1 and self.accelerator.num_processes == 1
                if not (halving and is_out_of_memory(error)):
                    raise
            # Not above: the error's traceback still holds the memory.
            self.forget()
            rows = min(self.rows or len(batch.pixels), len(batch.pixels))
            self.rows = rows // 2
            log.warning("Out of memory with %d images a pass; going on with %d.", rows, self.rows)

    def forget(self) -> None:
        """Drop all gradients, and give memory back."""
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.cuda.empty_cache()

    def gradient(self, batch: ImageBatch, progress: float, look: bool) -> Scalars:
        """Add the gradient of a batch's loss to that of the weights; returns its scalars by name."""
        parts = batch.split(self.rows or len(batch.pixels))
        scalars = []
        for number, part in enumerate(parts, 1):
            share = len(part.pixels) / len(batch.pixels)
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                scalars.append((share, self._part(part, share, progress, look)))
        if len(parts) == 1:
            return scalars[0][1]
        names = scalars[0][1]
        return {name: torch.stack([share * values[name] for share, values in scalars]).sum() for name in names}

    def _part(self, part: ImageBatch, share: float, progress: float, look: bool) -> Scalars:
        """Add the gradient of the part's loss times its share; returns the part's scalars, without a graph."""
        images = part.to(self.accelerator.device)
        with self.model.image.through(self.tower):
            with record_function("clipguard: objective"):
                losses, batch, attack = self.objective(self.model, images, progress, self.wrapped)
            loss = torch.stack(list(losses.values())).sum()
            with record_function("clipguard: backward"):
                self.accelerator.backward(loss if share == 1 else share * loss)
            with record_function("clipguard: metrics"):
                attacked = {} if attack is None else {"attack": attack}
                scalars = {**attacked, **losses, "loss": loss, **self._accuracy(batch, images, look)}
                return {name: value.detach() for name, value in scalars.items()}

    def _clip(self) -> Scalars:
        """Limit each gradient's norm; returns what they were. Without a limit, they are there to be checked."""
        parameters = {"image": self.model.image_parameters(), "text": self.model.text_parameters()}
        limit = self.config.grad_clip
        return {
            f"{name}_gradient": self.accelerator.clip_grad_norm_(parameters[name], limit)
            if limit
            else gradient_norm(parameters[name])
            for name in self.optimizers
        }

    def _accuracy(self, batch: Batch, images: ImageBatch, look: bool) -> Scalars:
        """Batch accuracy; clean images cost a pass where the method needs none, so they are looked at now and then."""
        clean = batch.clean
        if clean is None and batch.labels is not None and look:
            with torch.no_grad():
                clean = self.wrapped(images.pixels)
        accuracies = {
            "adversarial_accuracy": batch_accuracy(batch, batch.adversarial),
            "clean_accuracy": batch_accuracy(batch, clean),
        }
        return {name: value for name, value in accuracies.items() if value is not None}


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients as one vector, a scalar; 0 where there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm
