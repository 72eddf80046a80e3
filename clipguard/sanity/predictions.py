"""Whether clean predictions know anything of the labels: one net under all that can go wrong with an input.

It needs nothing but labels and predictions, so it costs no passes. docs/doctor.md says how often it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from clipguard.sanity.checks import TOLERATED_SHARE, Finding, not_checked

ABOVE_CHANCE_ALPHA = 0.05  # of the test that accuracy is above chance
NEAR_CERTAIN_ALPHA = 0.01  # of what is said only if nearly certain: below chance, no more than slight, another order
SLIGHT_KAPPA = 0.2  # Cohen's kappa up to which agreement is slight (Landis & Koch, Biometrics 1977)
RECOGNISED_ACCURACY = 2 / 3  # accuracy on the classes that are predicted, above which one that never is stands out
HIGHEST_CLASS_ACCURACY = 0.9  # accuracy that is expected of a class at most
CODE_NAME = re.compile(r"n\d{8}|(class|label|category|cat|cls|id|c)[ _-]?\d+", re.IGNORECASE)  # `n01440764`, `class_3`
PREDICTION_CHECKS = ("above-chance", "class-order", "predicted-classes")
Classes = npt.NDArray[np.int64]


def prediction_findings(labels: Any, predictions: Any, classes: int, names: Sequence[str] = ()) -> list[Finding]:
    """The findings of `PREDICTION_CHECKS`, in that order.

    Args:
        labels: class numbers of clean images, (N,), N at least 1.
        predictions: what they are taken for, (N,).
        classes: how many the model knows.
        names: of the classes, for the words.
    """
    truth, said = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    order = class_order(truth, said, names)
    return [above_chance(truth, said, classes, order, names), order, predicted_classes(truth, said, names)]


def chance(labels: Classes, predictions: Classes, classes: int) -> float:
    """Share that would be right if these predictions were dealt out at random: the agreement by chance of Cohen (1960).

    For predictions spread evenly that is 1 / classes, for one that is always the same the share of that class. At least
    1 / classes, and just that where all images are of one class: dealing out predictions changes nothing there.
    """
    most = max(classes, int(labels.max()) + 1, int(predictions.max()) + 1)
    shares = [np.bincount(numbers, minlength=most) / len(labels) for numbers in (labels, predictions)]
    agreement = float(shares[0] @ shares[1]) if shares[0].max() < 1 else 0.0
    return max(agreement, 1 / classes)


def above_chance(
    labels: Classes, predictions: Classes, classes: int, order: Finding, names: Sequence[str] = ()
) -> Finding:
    """Exact binomial tests of the number right against `chance`, one-sided.

    A warning where accuracy is not above chance at level 0.05, and it is nearly certain (0.01) that it is not much
    above, kappa 0.2; where it is below chance at level 0.01; and where the names are codes and kappa is below 0.2. With
    too few images for any of these, that is said (`undecided`), and it is no warning.
    """
    n, right = len(labels), int((labels == predictions).sum())
    by_chance = chance(labels, predictions, classes)
    slight = by_chance + SLIGHT_KAPPA * (1 - by_chance)
    p_above, p_below = (float(binomtest(right, n, by_chance, alternative=a).pvalue) for a in ("greater", "less"))
    highest = binomtest(right, n, alternative="less").proportion_ci(1 - NEAR_CERTAIN_ALPHA, method="exact").high
    numbers = {"correct": right, "n": n, "chance": round(by_chance, 6), "p_above": p_above, "p_below": p_below}
    what = f"{right} of {n} images are right when clean, {by_chance * n:.3g} would be by chance"
    if p_below < NEAR_CERTAIN_ALPHA:
        odd = f"below chance (exact test, p = {p_below:.2g})"
    elif p_above > ABOVE_CHANCE_ALPHA and highest < slight:
        odd = f"not above chance (exact test, p = {p_above:.2g})"
    elif right < slight * n and mostly(CODE_NAME.fullmatch, names):
        odd = f"hardly above chance (exact test, p = {p_above:.2g})"
    elif p_above > ABOVE_CHANCE_ALPHA:
        few = f"{what}: too few images to tell (exact test, p = {p_above:.2g}); look at the names, or take more images"
        return Finding("above-chance", "not checked", few, numbers | {"undecided": 1})
    else:
        return Finding("above-chance", "ok", what, numbers)
    return Finding("above-chance", "warning", f"{what}: {odd}. {causes(order, names)}", numbers)


def causes(order: Finding, names: Sequence[str]) -> str:
    """What makes good models guess, the likeliest first: what the run itself shows comes before the rest."""
    coded = mostly(lambda name: name.isdecimal() or CODE_NAME.fullmatch(name), names)
    listed = [
        (coded, f"class names that are ids or numbers{f', as {names[0]!r}' if coded else ', or of another list'}"),
        (order.verdict == "warning", "classes in another order than the labels"),
        (False, "another normalisation than in training, or images that are decoded wrongly"),
        (False, "another base model or activation than the weights were made with"),
    ]
    return f"Likely causes, in order: {'; '.join(text for _, text in sorted(listed, key=lambda cause: not cause[0]))}"


def mostly(test: Callable[[str], object], names: Sequence[str]) -> bool:
    """Whether at least half of the names pass a test; not if there are none."""
    return bool(names) and 2 * sum(bool(test(name.strip())) for name in names) >= len(names)


def class_order(labels: Classes, predictions: Classes, names: Sequence[str] = ()) -> Finding:
    """Whether another order of the class names would do away with half of the errors.

    The best order for one half of each class's images (Hungarian method) is judged on the other half, and the reverse,
    so that mere luck does not count; exact McNemar test against the order as it is, one-sided, level 0.01.
    """
    present, count = np.unique(labels, return_counts=True)
    if len(present) < 2 or count.max() < 2:
        return not_checked("class-order", "it takes two classes, and two images of one")
    half = np.empty(len(labels), dtype=np.int64)
    for label in present:
        mine = np.flatnonzero(labels == label)
        half[mine] = np.arange(len(mine)) % 2
    reordered = np.empty(len(labels), dtype=bool)
    for part in (0, 1):
        best = best_order(labels[half != part], predictions[half != part])
        reordered_labels = np.array([best.get(label, label) for label in labels[half == part].tolist()], dtype=np.int64)
        reordered[half == part] = reordered_labels == predictions[half == part]
    right, n = labels == predictions, len(labels)
    gained, lost = int((reordered & ~right).sum()), int((right & ~reordered).sum())
    correct = int(right.sum())
    after = correct + gained - lost
    numbers = {"correct": correct, "reordered": after, "n": n}
    fewer = 2 * (n - after) <= n - correct
    if gained and fewer and binomtest(gained, gained + lost, alternative="greater").pvalue < NEAR_CERTAIN_ALPHA:
        evidence = f"with the classes in another order {after} of {n} images would be right, not {correct}"
        return Finding("class-order", "warning", f"{evidence}{_example(labels, predictions, names)}", numbers)
    return Finding("class-order", "ok", f"no other order of the classes would halve the {n - correct} errors", numbers)


def best_order(labels: Classes, predictions: Classes) -> dict[int, int]:
    """The class that each label should have been for most images to be right; its own where nothing tells."""
    numbers, where = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    table = 1e-3 * np.eye(len(numbers))  # of orders that are equally good, the nearest to the one there is
    np.add.at(table, (where[: len(labels)], where[len(labels) :]), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return dict(zip(numbers[rows].tolist(), numbers[columns].tolist(), strict=True))


def _example(labels: Classes, predictions: Classes, names: Sequence[str]) -> str:
    """The class that is most often taken for the one in its place."""
    moved = [(a, b) for a, b in best_order(labels, predictions).items() if a != b and (labels == a).any()]
    if not moved:
        return ""
    label, other = max(moved, key=lambda pair: int(((labels == pair[0]) & (predictions == pair[1])).sum()))
    mine = labels == label
    label_name, other_name = (repr(names[i]) if names else str(i) for i in (label, other))
    return f": {int((predictions[mine] == other).sum())} of {int(mine.sum())} of {label_name} are called {other_name}"


def predicted_classes(labels: Classes, predictions: Classes, names: Sequence[str] = ()) -> Finding:
    """Classes with images that no image is taken for, where the other classes are recognised.

    A warning for those that would be predicted at least once, but for a chance of 0.01 over all classes, if they were
    recognised like the others, where they have more than 1 % of the images: good models forget a few of many classes.
    """
    present, count = np.unique(labels, return_counts=True)
    ever = np.isin(present, predictions)
    numbers: dict[str, float] = {"never": int((~ever).sum()), "classes": len(present)}
    what = f"{int((~ever).sum())} of the {len(present)} classes with images are never predicted"
    if ever.all():
        return Finding("predicted-classes", "ok", what, numbers)
    known = np.isin(labels, present[ever])
    accuracy = float((labels == predictions)[known].mean()) if known.any() else 0.0
    if accuracy < RECOGNISED_ACCURACY:
        few = f"{what}; the others are right too rarely ({100 * accuracy:.0f} %) to tell"
        return Finding("predicted-classes", "not checked", few, numbers)
    odd = ~ever & ((1 - min(accuracy, HIGHEST_CLASS_ACCURACY)) ** count < NEAR_CERTAIN_ALPHA / len(present))
    numbers["bad"] = int(odd.sum())
    if count[odd].sum() <= TOLERATED_SHARE * len(labels):
        return Finding("predicted-classes", "ok", f"{what}, but they have few images", numbers)
    order = np.flatnonzero(odd)[np.argsort(-count[odd], kind="stable")][:3]
    said = ", ".join(f"{names[present[i]]!r} ({count[i]} images)" if names else str(present[i]) for i in order)
    evidence = f"{what}, though {100 * accuracy:.0f} % of the others' images are right: {said}"
    if len(np.unique(predictions)) == 1:
        only = repr(names[predictions[0]]) if names else str(predictions[0])
        evidence = f"{what}: every image is taken for {only}"
    return Finding("predicted-classes", "warning", evidence, numbers)
