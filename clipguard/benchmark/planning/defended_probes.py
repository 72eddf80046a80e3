"""What the sanity probes of a defended model would take: those of a run, made for the plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.checks.probing import DEFENDED_IMAGES, GATE_IMAGES, Prober
from clipguard.benchmark.defended import declared_passes
from clipguard.benchmark.planning.defended_speed import Padding
from clipguard.benchmark.planning.estimate import Span
from clipguard.benchmark.task import Task
from clipguard.benchmark.workers.worker import Worker
from clipguard.defenses.attacking.stand_ins import layers
from clipguard.sanity.defenses import STEPS
from clipguard.store.store import Store

GRADIENT = 3  # times the passes of a look: the look itself, the defence's steps once more, and these on the way back


@dataclass
class ProbesMade:
    """The probes of a model on a data set, which a run with the same store finds there.

    Attributes:
        passes: forward, that they took now.
        seconds: the same.
        left: forward passes that the run would have to make.
    """

    passes: int
    seconds: float
    left: int


def make_probes(worker: Worker, task: Task, recipe: Recipe, store: Store | None, cells: Sequence[str]) -> ProbesMade:
    """Make the probes of a run, whose images do not depend on what attacks find, unless the store has them."""
    started = time.perf_counter()
    clean = pd.DataFrame({"attack": "none", "index": task.indices, "robust": True})
    prober = Prober(worker.plan, worker.probe, task, worker.preprocess, clean, store, cells)
    prober(recipe)
    passes = sum(cost.forward for cost in prober.costs.values())
    return ProbesMade(passes, time.perf_counter() - started, 0 if store else passes)


def most_probes(worker: Worker, task: Task) -> Span:
    """At least and at most, from what the defences declare: see `DefenseProbe`."""
    defended = worker.defended()
    assert defended is not None
    around = [layer.defense for layer in layers(defended.classifier)]
    look = declared_passes(around, len(task.dataset.class_names))[0]
    n = min(DEFENDED_IMAGES, len(task.indices))
    rows = Padding(worker.options, defended.classifier.least_rows, worker.device.startswith("cuda")).rows(n)
    judged = rows * look * (defended.votes if defended.random else 1)
    most = rows * (STEPS + 2) + 2 * (rows + judged)  # images of the undefended model, and their labels
    if any(defense.gated for defense in around):
        flagged = n + min(GATE_IMAGES, len(task.indices))
        most += rows * (STEPS + 2) * GRADIENT * look + 2 * judged + flagged * look * len(around)
    gradients = sum(len(defense.backwards) for defense in around)
    return Span(0, None, most + n * (1 + 2 * GRADIENT * look * gradients))
