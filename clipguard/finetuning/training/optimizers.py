"""Optimisers, the moving average, and the learning rate: a function of the step, so no checkpoint remembers it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from clipguard.finetuning.config import FinetuneConfig, Schedule
from clipguard.finetuning.processes.sharding import own_part
from clipguard.finetuning.tuned.tuned_model import TunedModel


def make_optimizers(config: FinetuneConfig, model: TunedModel, text_lr: float) -> dict[str, torch.optim.Optimizer]:
    """One for the image tower, as configured; one for tuned text, Adam without weight decay at its own rate.

    Where prompts are learned there is one for them alone, as configured; where the text alone is trained, its own is.
    """
    parts = {"prompts": model.prompt_parameters(), "image": model.image_parameters(), "text": model.text_parameters()}
    name = next((name for name, parameters in parts.items() if parameters), "image")
    first = parts[name]
    # Of fused ones torch has Adam alone for parameters that are divided among processes.
    fused = config.optimizer == "adamw" or not any(isinstance(parameter, DTensor) for parameter in first)
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": fused}
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.AdamW(first, **common)
        if config.optimizer == "adamw"
        else torch.optim.SGD(first, momentum=config.momentum, **common)
    }
    if (text := parts["text"]) and "text" not in optimizers:
        optimizers["text"] = torch.optim.AdamW(text, text_lr, weight_decay=0.0, fused=text[0].is_cuda or None)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's weights, with its buffers as they are.

    Updated without a look at its count of updates, for which a GPU would be waited for.
    """

    def __init__(self, model: TunedModel, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def follow(self, model: TunedModel, *, first: bool) -> None:
        """Move towards a model; at the first time, become it."""
        own = own_part(self.module.parameters())
        others = own_part(model.parameters())
        if first:
            torch._foreach_copy_(own, others)
        else:
            torch._foreach_lerp_(own, others, 1 - self.decay)
        torch._foreach_copy_(list(self.module.buffers()), list(model.buffers()))
        self.n_averaged += 1


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """The peak rate times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]


def lr_factor(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """Share of the peak rate at a step (from 0): linear warm-up from 1 / warmup, then constant, or cosine towards 0.

    As open_clip's `cosine_lr`: the first step is neither idle nor at the full rate.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
