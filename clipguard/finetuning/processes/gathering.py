"""A batch of all processes, for losses in which its images meet."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from clipguard.finetuning.methods.base import Batch
from clipguard.finetuning.processes.team import Team

# Fields of a batch without a row per image.
PER_CLASS = ("text", "original_text", "class_prompts", "original_prompts", "negative_text")


def gather_batch(batch: Batch, n: int, team: Team) -> Batch:
    """The batch of n images of which each process has its part, in the order of one process, on all.

    Each process gets the gradient of its own rows, times the number of processes: the mean over processes, which is
    what they take, is then the gradient of the whole.
    """
    values = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name not in PER_CLASS}
    rows = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **{name: _Gather.apply(value, n, team) for name, value in rows.items()})


class _Gather(torch.autograd.Function):
    """Rows of one process -> rows of all, by adding zeros, which leaves every bit."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, n: int, team: Team) -> Tensor:
        ctx.team, ctx.own = team, team.part(n)
        whole = rows.new_zeros(n, *rows.shape[1:])
        whole[ctx.own] = rows
        return team.sum(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.team.size * gradients[0][ctx.own], None, None
