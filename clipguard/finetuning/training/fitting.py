"""What is found out before the first step: how many images a pass may take, and whether the tower can be compiled."""

from __future__ import annotations

import logging

import torch

from clipguard.attacks.engine.passes.batching import PROBE_ROWS, fitting_batch_size, is_out_of_memory
from clipguard.core.errors import first_line
from clipguard.finetuning.data.batches import ImageBatch
from clipguard.finetuning.training.step import Step

log = logging.getLogger("clipguard")
PHASES = (0.0, 1.0)  # progress at which methods are tried: some train in phases


def fitting_rows(step: Step, batch: ImageBatch) -> int:
    """Images of a pass that fit into memory: 64 on a CPU, where more gains nothing, and what is measured on CUDA.

    The measurement leaves a fifth of what is free, for the optimisers' state among others. All processes get the
    least number of any.

    Args:
        step: whose passes are meant; its model is in train mode.
        batch: an image of the run.
    """
    images = batch.to(step.accelerator.device)

    def gradient_pass(x: torch.Tensor) -> None:
        labels = None if images.labels is None else images.labels[:1].expand(len(x))
        for progress in PHASES:
            captions = None if images.captions is None else images.captions[:1] * len(x)
            step.try_alone(ImageBatch(x, labels, images.keys[:1] * len(x), captions), progress)

    try:
        if images.pixels.is_cuda:
            gradient_pass(images.pixels[:1])  # makes the gradients, which do not grow with the rows
        rows = fitting_batch_size(images.pixels[0], gradient_pass)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        rows = PROBE_ROWS // 2
    step.forget()
    return min(step.team.gather(rows))


def compile_tower(step: Step, batch: ImageBatch) -> None:
    """Let the passes of a step go through the image tower compiled, if that works; a warning if it does not.

    Args:
        step: whose model is in train mode.
        batch: of the shape that passes have.
    """
    # Of the method alone: it is no part of the module, whose weights keep their names.
    step.tower = torch.compile(step.model.image.visual.forward, dynamic=False)
    try:
        for progress in PHASES:
            step.try_alone(batch, progress)
    except torch._dynamo.exc.TorchDynamoException as error:
        log.warning("This model cannot be compiled here; going on without `compile` (%s).", first_line(error))
        step.tower = None
    step.forget()
