"""One step of the optimisers: passes over its images, in parts that fit, and what changes the weights.

Nothing here reads a number from the device, so that a GPU is never made to wait for the next thing to do.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from clipguard.attacks.engine.passes.batching import is_out_of_memory
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch
from clipguard.finetuning.methods.base import Batch
from clipguard.finetuning.processes.gathering import gather_batch
from clipguard.finetuning.processes.sharding import whole
from clipguard.finetuning.processes.team import Team
from clipguard.finetuning.training.objective import Objective, Terms, batch_accuracy
from clipguard.finetuning.tuned.tuned_model import TunedModel
from clipguard.finetuning.tuned.weight_perturbation import perturbed, perturbed_weights

log = logging.getLogger("clipguard")
Scalars = dict[str, Tensor]


class BatchLoss(nn.Module):
    """The loss of this process's images, as one module: gradients meet those of other processes in one backward pass.

    Args:
        model: what is trained.
        forward: the model as accelerate prepared it.
        objective: says what the loss is.
        batch_size: images of a batch, over all processes.
        team: this process among others.
    """

    def __init__(
        self, model: TunedModel, forward: nn.Module, objective: Objective, batch_size: int, team: Team
    ) -> None:
        super().__init__()
        self.model, self.objective, self.batch_size, self.team = model, objective, batch_size, team
        self._forward = [forward]  # in a list, so that it is no second module of the same weights
        self._gathers = team.size > 1 and not objective.method.divisible()

    def forward(self, images: ImageBatch, progress: float, *, alone: bool = False) -> tuple[Tensor, Terms]:
        """The loss with its graph, and terms without; `alone`: of these images, whatever others do."""
        whole = self._whole if self._gathers and not alone else None
        losses, batch, attack, given = self.objective(self.model, images, progress, self._forward[0], whole)
        loss = torch.stack(list(losses.values())).sum()
        tensors: dict[str, Any] = {
            name: value.detach() for name, value in vars(batch).items() if isinstance(value, Tensor)
        }
        return loss, Terms({n: term.detach() for n, term in losses.items()}, replace(batch, **tensors), attack, given)

    def _whole(self, batch: Batch) -> Batch:
        return gather_batch(batch, self.batch_size, self.team)

    def weight(self, rows: int, own: int) -> float:
        """What the loss of `rows` of this process's `own` images counts in the mean over processes.

        It is the share of the whole batch, times the number of processes; the loss of a batch that is gathered counts
        as it is.
        """
        if self._gathers:
            return rows / own
        return self.team.size * rows / self.batch_size if self.team.size > 1 else rows / own


def averaged(loss: BatchLoss) -> DistributedDataParallel:
    """The loss, such that its backward pass gives the mean of all processes' gradients.

    Methods may leave weights alone for a while. To look for those also keeps the order of sums the same at every step,
    so that a run that was started again ends with the same bits.
    """
    loss.register_parameter("unread", nn.Parameter(torch.zeros((), device=next(loss.parameters()).device)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the name, which older versions of torch need
        return DistributedDataParallel(loss, find_unused_parameters=True, broadcast_buffers=False)  # none changes


class Step:
    """One step of the optimisers, over `accumulate` batches, each in parts of at most `rows` images.

    A part's loss counts by its share of the batch: that is the loss of the whole batch, for methods whose loss is a
    mean over images. Of several processes each has its part of the batch; where images meet in the loss, all compute it
    from the embeddings of all. Where memory does not suffice and the size is clipguard's choice, parts are halved and
    the batch begins again.

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
        team: Team,
    ) -> None:
        """`wrapped`, `optimizers`: as accelerate prepared them."""
        self.config, self.accelerator, self.team = config, accelerator, team
        self.model, self.wrapped, self.optimizers = model, wrapped, optimizers
        self.loss = BatchLoss(model, wrapped, objective, config.images_per_batch, team)
        self.synced: nn.Module = self.loss
        if team.size > 1 and not config.fsdp:
            self.synced = averaged(self.loss)
        self.rows = config.batch_size and -(-config.batch_size // team.size) if config.effective_batch else None
        self.tower: Callable[[Tensor], Any] | None = None

    def __call__(
        self, batches: Iterator[ImageBatch], progress: float, *, look: bool, perturb: bool = True
    ) -> tuple[list[Scalars], Scalars]:
        """Take the step.

        Args:
            batches: the next ones are taken.
            progress: of the run, from 0 to 1.
            look: whether clean accuracy is worth a pass where the method needs none.
            perturb: whether the gradient is that at perturbed weights, where the settings ask for it (`awp`).

        Returns:
            Scalars by name of each batch, and the norms of the gradients.
        """
        drawn = (self._draw(batches) for _ in range(self.config.accumulate))
        if self.config.awp and perturb:
            passes = self._at_perturbed_weights(drawn, progress, look)
        else:
            passes = [scalars for scalars, _ in self._gradients(drawn, progress, look)]
        with record_function("clipguard: optimiser"):
            if self.config.fsdp:
                average_gradients(self.model.text_parameters(), self.team)
            norms = self._clip()
            for optimizer in self.optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
        return passes, norms

    @staticmethod
    def _draw(batches: Iterator[ImageBatch]) -> ImageBatch:
        with record_function("clipguard: data"):
            return next(batches)

    def _gradients(
        self, batches: Iterable[ImageBatch], progress: float, look: bool
    ) -> Iterator[tuple[Scalars, ImageBatch]]:
        """Add the gradients of a step's batches; gives the scalars of each, and the batch as `gradient` gives it."""
        for batch in batches:
            with self.accelerator.accumulate(self.synced):
                yield self._pass(batch, progress, look)

    def _at_perturbed_weights(self, batches: Iterable[ImageBatch], progress: float, look: bool) -> list[Scalars]:
        """Leave the gradient at adversarially perturbed weights (AWP), on images attacked at those that there are.

        The scalars are those at the perturbed weights, whose loss is the one that is trained on, and of the attack.
        """
        first = list(self._gradients(batches, progress, look=False))
        with perturbed(perturbed_weights(self.model), self.config.awp):
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            second = self._gradients([attacked for _, attacked in first], progress, look)
            attacks = [{"attack": scalars["attack"]} if "attack" in scalars else {} for scalars, _ in first]
            return [{**attack, **scalars} for attack, (scalars, _) in zip(attacks, second, strict=True)]

    def _pass(self, batch: ImageBatch, progress: float, look: bool) -> tuple[Scalars, ImageBatch]:
        """As `gradient`, in smaller parts where memory does not suffice."""
        while True:
            try:
                return self.gradient(batch, progress, look)
            except (MemoryError, RuntimeError) as error:
                # Of several processes, the others would wait for this one's gradients.
                halving = self.config.batch_size is None and self.rows != 1 and self.team.size == 1
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

    def gradient(self, batch: ImageBatch, progress: float, look: bool) -> tuple[Scalars, ImageBatch]:
        """Add the gradient of a batch's loss to that of the weights.

        Returns:
            Scalars by name; and the batch, with its adversarial images where a second gradient needs them.
        """
        parts = batch.split(self.rows or len(batch.pixels))
        scalars: list[tuple[float, Scalars]] = []
        attacked: list[Tensor] = []
        for number, part in enumerate(parts, 1):
            share = len(part.pixels) / len(batch.pixels)
            weight = self.loss.weight(len(part.pixels), len(batch.pixels))
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.synced):
                values, images = self._part(part, weight, progress, look, self.synced)
            scalars.append((share, values))
            if self.config.awp and images.adversarial is not None:
                attacked.append(images.adversarial)
        if attacked:
            batch = batch._replace(adversarial=torch.cat(attacked))
        if len(parts) == 1:
            return scalars[0][1], batch
        names = scalars[0][1]
        return {name: torch.stack([share * values[name] for share, values in scalars]).sum() for name in names}, batch

    def try_alone(self, batch: ImageBatch, progress: float) -> None:
        """A pass with gradients that no other process takes part in."""
        self._part(batch, 1.0, progress, True, partial(self.loss, alone=True))

    def _part(
        self, part: ImageBatch, weight: float, progress: float, look: bool, of: Callable[..., tuple[Tensor, Terms]]
    ) -> tuple[Scalars, ImageBatch]:
        """Add the gradient of the part's loss times its weight; returns scalars without a graph, and the images."""
        images = part.to(self.accelerator.device)
        with self.model.image.through(self.tower):
            with record_function("clipguard: objective"):
                loss, (losses, batch, attack, images) = of(images, progress)
            with record_function("clipguard: backward"):
                self.accelerator.backward(loss if weight == 1 else weight * loss)
            with record_function("clipguard: metrics"):
                attacked = {} if attack is None else {"attack": attack}
                scalars = {**attacked, **losses, "loss": loss, **self._accuracy(batch, images, look)}
                return {name: value.detach() for name, value in scalars.items()}, images

    def _clip(self) -> Scalars:
        """Limit each gradient's norm; returns what they were. Without a limit, they are there to be checked."""
        model = self.model
        parameters = {"image": model.image_parameters(), "text": model.text_parameters()}
        parameters["prompts"] = model.prompt_parameters()
        limit = self.config.grad_clip
        norms = {
            name: self.accelerator.clip_grad_norm_(parameters[name], limit)
            if limit
            else gradient_norm(parameters[name])
            for name in self.optimizers
        }
        return {f"{name}_gradient": norm for name, norm in whole(norms).items()}

    def _accuracy(self, batch: Batch, images: ImageBatch, look: bool) -> Scalars:
        """Batch accuracy; clean images cost a pass where the method needs none, so they are looked at now and then."""
        clean = batch.clean
        if clean is None and batch.labels is not None and look and self.loss.objective.method.sees_images():
            with torch.no_grad():
                clean = self.wrapped(images.pixels)
        accuracies = {
            "adversarial_accuracy": batch_accuracy(batch, batch.adversarial),
            "clean_accuracy": batch_accuracy(batch, clean),
        }
        return {name: value for name, value in accuracies.items() if value is not None}


def average_gradients(parameters: list[nn.Parameter], team: Team) -> None:
    """The mean of all processes' gradients, of parameters that each process has whole and nobody else averages."""
    for parameter in parameters:
        if parameter.grad is not None:
            team.sum(parameter.grad.div_(team.size))


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients as one vector, a scalar; 0 where there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm
