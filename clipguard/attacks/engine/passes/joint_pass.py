"""One pass for the rows of several attacks: all that want a gradient together, then all the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipguard.attacks.base import Attack
from clipguard.attacks.engine.passes.batching import join
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.attacks.engine.rows import Rows, on_device
from clipguard.attacks.state import AttackState


@dataclass
class Query:
    """Points that one attack wants to be evaluated.

    Attributes:
        attack: whose points they are.
        rows: a row a point.
        x: (B, C, H, W) the points as the attack asked for them.
        admissible: (B, C, H, W) those next to them that the threat model allows: these are evaluated.
    """

    attack: Attack
    rows: Rows
    x: Tensor
    admissible: Tensor

    @property
    def state(self) -> AttackState:
        """The attack's table of its rows."""
        return self.rows.state


@dataclass
class Evaluation:
    """What the model says at the points of a query.

    Attributes:
        query: the points.
        logits: (B, classes).
        loss: (B,) the attack's.
        gradient: (B, C, H, W) of the loss; zero for rows that wanted none.
    """

    query: Query
    logits: Tensor
    loss: Tensor
    gradient: Tensor


class Segment:
    """Rows of a query that are evaluated in the same pass, all of them if `index` is None."""

    def __init__(self, query: Query, index: Tensor | None) -> None:
        columns = (query.admissible, query.state["label"], query.state["target"])
        self.attack, self.index = query.attack, index
        self.x, self.labels, self.targets = columns if index is None else (column[index] for column in columns)
        self.result: tuple[Tensor, ...] = ()  # logits, loss and gradient, once evaluated

    @property
    def n(self) -> int:
        """How many rows."""
        return len(self.x)


@dataclass(frozen=True)
class JointLoss:
    """The losses of the attacks whose rows follow each other in one pass: an `Objective`."""

    segments: Sequence[Segment]

    def __call__(self, logits: Tensor, start: int, stop: int) -> Tensor:
        """(stop - start,) losses of the pass's rows [start, stop), whose logits these are."""
        values, first = [], 0
        for segment in self.segments:
            last = first + segment.n
            a, b = max(first, start), min(last, stop)
            if a < b:
                rows = slice(a - first, b - first)
                loss = segment.attack.loss(logits[a - start : b - start], segment.labels[rows], segment.targets[rows])
                values.append(loss)
            first = last
        return join(values)


def evaluate(evaluator: Evaluator, queries: Sequence[Query]) -> list[Evaluation]:
    """Evaluate all queries, in at most two passes.

    Args:
        evaluator: the model; it charges the passes to the attacks.
        queries: of images of one shape.

    Returns:
        One evaluation for each query, in their order.
    """
    split = [_split(query) for query in queries]
    _run(evaluator, [with_gradient for with_gradient, _ in split if with_gradient], gradient=True)
    _run(evaluator, [without for _, without in split if without], gradient=False)
    return [
        Evaluation(query, *_merged([segment for segment in segments if segment]))
        for query, segments in zip(queries, split, strict=True)
    ]


def _split(query: Query) -> tuple[Segment | None, Segment | None]:
    """The rows that want a gradient, and the rest; None where there are none."""
    wants, device = query.rows.wants, query.x.device
    if wants.all():
        return Segment(query, None), None
    if not wants.any():
        return None, Segment(query, None)
    with_gradient, without = (on_device(np.flatnonzero(which), device) for which in (wants, ~wants))
    return Segment(query, with_gradient), Segment(query, without)


def _run(evaluator: Evaluator, segments: Sequence[Segment], *, gradient: bool) -> None:
    """Evaluate the segments in one pass."""
    if not segments:
        return
    x, loss = join([segment.x for segment in segments]), JointLoss(segments)
    images = {segment.attack.full_name: segment.n for segment in segments}
    with evaluator.costs.charged(images, images if gradient else {}):
        if gradient:
            columns = evaluator.gradient(x, loss)
        else:
            logits = evaluator.logits(x)
            columns = (logits, loss(logits, 0, len(logits)), torch.zeros_like(x))
    sizes = [segment.n for segment in segments]
    parts = zip(*(torch.split(column, sizes) for column in columns), strict=True)
    for segment, part in zip(segments, parts, strict=True):
        segment.result = part


def _merged(segments: Sequence[Segment]) -> tuple[Tensor, ...]:
    """The results of a query's segments, its rows in their order."""
    if len(segments) == 1:
        return segments[0].result
    n = sum(segment.n for segment in segments)
    columns = tuple(column.new_empty(n, *column.shape[1:]) for column in segments[0].result)
    for segment in segments:
        assert segment.index is not None
        for column, values in zip(columns, segment.result, strict=True):
            column[segment.index] = values
    return columns
