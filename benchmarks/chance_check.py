"""How often do the checks of clean predictions cry wolf on honest tasks, and how often do they catch a fault?

`python chance_check.py` simulates models on the registry's kinds of task, runs the checks of every `clipguard bench` on
their predictions (`clipguard.sanity.predictions`), and writes to `results/chance_check.json`:

- honest: the share of runs with a warning, by task, accuracy and number of images. Accuracies go down to those of
  robust models on the hardest sets. Classes differ in accuracy, and errors go to a few similar or popular classes;
- faults: the share of runs in which a planted fault gives a warning, of models that would be good.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from common import provenance, save

from clipguard.sanity.predictions import PREDICTION_CHECKS, prediction_findings

SIZES = (20, 50, 200, 1000, 10000)
STRENGTH = 3.0  # of that distribution
Vector = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """A kind of data set: how often its classes are, and accuracies that honest models have there."""

    name: str
    classes: int
    accuracies: tuple[float, ...]
    skew: float = 0.0  # class k is as frequent as (k + 1) ** -skew

    def labels(self, rng: np.random.Generator, n: int) -> Classes:
        """A class-stratified subset, as bench chooses it."""
        shares = (np.arange(self.classes) + 1.0) ** -self.skew
        wanted = n * shares / shares.sum()
        counts = np.floor(wanted).astype(np.int64)
        counts[rng.choice(self.classes, n - counts.sum(), replace=False)] += 1
        return np.repeat(np.arange(self.classes), counts)


TASKS = (
    Task("two classes (pcam)", 2, (0.6, 0.65, 0.8)),
    Task("two classes, 9 to 1", 2, (0.7, 0.9), skew=3.17),
    Task("embedded sets", 9, (0.6, 0.85), skew=0.6),
    Task("digits, satellites, robust (svhn, mnist, eurosat)", 10, (0.2, 0.3, 0.5)),
    Task("ten objects (cifar10, stl10)", 10, (0.6, 0.9, 0.98)),
    Task("traffic signs (gtsrb)", 43, (0.1, 0.3), skew=0.7),
    Task("textures (dtd)", 47, (0.2, 0.45)),
    Task("aircraft (fgvc-aircraft)", 100, (0.08, 0.15, 0.25)),
    Task("flowers, food, objects (flowers102, food101, caltech101)", 101, (0.5, 0.7, 0.9), skew=0.5),
    Task("countries (country211)", 211, (0.05, 0.15, 0.2)),
    Task("ImageNet", 1000, (0.1, 0.3, 0.6, 0.75)),
)
FAULTY = (
    Task("pcam", 2, (0.8,)),
    Task("embedded sets", 9, (0.85,), skew=0.6),
    Task("cifar10", 10, (0.9,)),
    Task("food101", 101, (0.8,)),
    Task("country211", 211, (0.2,)),
    Task("ImageNet", 1000, (0.65,)),
)


def class_accuracies(rng: np.random.Generator, shares: Vector, accuracy: float) -> Vector:
    """(classes,) beta-distributed, many of them near 0 or 1; over all images `accuracy`, to two points."""
    while True:
        right = rng.beta(STRENGTH * accuracy, STRENGTH * (1 - accuracy), len(shares))
        if abs(right @ shares - accuracy) < 0.02:
            return right


def confusions(rng: np.random.Generator, labels: Classes, classes: int, accuracy: float) -> Vector:
    """(classes, classes) chances of each prediction for each class, of one honest model."""
    right = class_accuracies(rng, np.bincount(labels, minlength=classes) / len(labels), accuracy)
    popular = rng.lognormal(0, 1.5, classes)
    table = np.zeros((classes, classes))
    for label in range(classes):
        others = rng.choice(classes, min(5, classes), replace=False)  # the similar ones
        table[label, others] += rng.dirichlet(np.full(len(others), 0.5))
        table[label] += popular / popular.sum()
        table[label, label] = 0
        table[label] *= (1 - right[label]) / max(table[label].sum(), 1e-12)
        table[label, label] = right[label]
    return table


def draw(rng: np.random.Generator, table: Vector, labels: Classes) -> Classes:
    """A prediction for each label."""
    edges = table.cumsum(axis=1)
    chosen = (rng.random((len(labels), 1)) * edges[labels, -1:] >= edges[labels]).sum(axis=1)
    return np.minimum(chosen, table.shape[1] - 1)


def guesses(rng: np.random.Generator, classes: int, labels: Classes) -> Classes:
    """Predictions of names that mean nothing: a few are said most of the time, whatever the image."""
    said = rng.lognormal(0, 1.5, classes)
    return rng.choice(classes, len(labels), p=said / said.sum())


def uniform(rng: np.random.Generator, classes: int, labels: Classes) -> Classes:
    """Every class as often."""
    return rng.integers(0, classes, len(labels))


def constant(rng: np.random.Generator, classes: int, labels: Classes) -> Classes:
    """One class, always."""
    return np.full(len(labels), rng.integers(0, classes))


def moved(rng: np.random.Generator, classes: int, predictions: Classes, share: float = 1.0) -> Classes:
    """Names in another order: no class, or all but a share of them, keeps its place."""
    chosen = rng.choice(classes, max(2, round(share * classes)), replace=False)
    order = np.arange(classes)
    order[chosen] = np.roll(chosen, 1)
    return order[predictions]


def share(times: int, once: Callable[[], tuple[Classes, Classes]], classes: int) -> dict[str, float]:
    """How often each check warns, and any of them."""
    warned: Counter[str] = Counter()
    for _ in range(times):
        found = [f.id for f in prediction_findings(*once(), classes) if f.verdict == "warning"]
        warned.update([*found, *(["any"] if found else [])])
    return {name: warned[name] / times for name in ("any", *PREDICTION_CHECKS)}


def honest(rng: np.random.Generator, task: Task, accuracy: float, n: int, times: int) -> dict[str, object]:
    """Warnings about models that are as good as they can."""

    def once() -> tuple[Classes, Classes]:
        labels = task.labels(rng, n)
        return labels, draw(rng, confusions(rng, labels, task.classes, accuracy), labels)

    about = {"task": task.name, "classes": task.classes, "accuracy": accuracy, "n": n, "runs": times}
    return about | {"warned": share(times, once, task.classes)}


def faulty(rng: np.random.Generator, task: Task, fault: str, n: int, times: int) -> dict[str, object]:
    """Warnings about a planted fault."""
    (accuracy,), classes = task.accuracies, task.classes

    def once() -> tuple[Classes, Classes]:
        labels = task.labels(rng, n)
        if fault in GUESSERS:
            return labels, GUESSERS[fault](rng, classes, labels)
        predictions = draw(rng, confusions(rng, labels, classes, accuracy), labels)
        return labels, moved(rng, classes, predictions, 1.0 if fault == "another order" else 0.5)

    about = {"task": task.name, "classes": classes, "fault": fault, "n": n, "runs": times}
    return about | {"warned": share(times, once, classes)}


GUESSERS = {"random predictions": uniform, "names without meaning": guesses, "always the same": constant}
FAULTS = (*GUESSERS, "another order", "half in another order")


def main() -> None:
    """All tasks and faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="of each kind, for up to 200 images; fewer for more")
    options = parser.parse_args()
    started, rng = time.perf_counter(), np.random.default_rng(0)
    times = {n: max(20, options.runs if n <= 200 else options.runs // (5 if n == 1000 else 20)) for n in SIZES}
    quiet = [honest(rng, task, accuracy, n, times[n]) for task in TASKS for accuracy in task.accuracies for n in SIZES]
    loud = [faulty(rng, task, fault, n, times[n]) for task in FAULTY for fault in FAULTS for n in SIZES]
    seconds = round(time.perf_counter() - started)
    save("chance_check", provenance() | {"seconds": seconds, "honest": quiet, "faults": loud})
    for row in [*quiet, *loud]:
        print(row)


if __name__ == "__main__":
    main()
