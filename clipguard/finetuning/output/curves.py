"""Training curves from the rows of `metrics.jsonl`: loss terms, accuracies, and the checkpoint that was chosen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipguard.figures.fonts import families
from clipguard.figures.text import DPI
from clipguard.finetuning.training.metrics import NOT_LOSSES

INK, FAINT = "#1f2328", "#59636e"
COLOURS = ("#0b5fff", "#b3261e", "#116329", "#7d4e00", "#6f42c1")
CLEAN, ROBUST = COLOURS[0], COLOURS[1]
WINDOWS = 30  # in a run: a smooth line averages over a thirtieth of it
MetricRows = Sequence[Mapping[str, Any]]  # as of `read_metrics`


def draw_curves(rows: MetricRows, title: str, best_step: int | None) -> bytes:
    """Loss and its terms by step, and accuracies beside it where there are any.

    Args:
        rows: of `metrics.jsonl`.
        title: above all.
        best_step: of the chosen checkpoint, which is marked.

    Returns:
        A PNG file.
    """
    steps = [row for row in rows if "validation" not in row]
    validations = [row for row in rows if "validation" in row]
    with_accuracy = any("adversarial_accuracy" in row or "clean_accuracy" in row for row in steps)
    figure = Figure(figsize=(11 if with_accuracy else 6, 4.2), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK, fontsize=11, fontfamily=families(title), parse_math=False)
    panels = figure.subplots(1, 2 if with_accuracy else 1, squeeze=False)[0]
    _draw_loss(panels[0], steps, validations)
    if with_accuracy:
        _draw_accuracy(panels[1], steps, validations)
    for axes in panels:
        _style(axes, best_step)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_loss(axes: Axes, steps: MetricRows, validations: MetricRows) -> None:
    axes.set_title("Loss on training batches", fontsize=10, color=INK)
    names = list(dict.fromkeys(name for row in steps for name in row if name not in NOT_LOSSES))
    names = ["loss", *(n for n in names if n != "loss")] if len(names) > 2 else ["loss"]  # one term is the loss itself
    for name, colour in zip(names, (INK, *COLOURS), strict=False):
        _line(axes, steps, name, colour, name)
    losses = [(row["step"], row["validation"]["loss"]) for row in validations if "loss" in row["validation"]]
    if losses:
        axes.plot(*zip(*losses, strict=True), "o", color=ROBUST, label="validation")


def _draw_accuracy(axes: Axes, steps: MetricRows, validations: MetricRows) -> None:
    axes.set_title("Accuracy in % (points: validation images, with 95 % intervals)", fontsize=10, color=INK)
    _line(axes, steps, "clean_accuracy", CLEAN, "clean, training batches", 100)
    _line(axes, steps, "adversarial_accuracy", ROBUST, "adversarial, training batches", 100)
    for name, colour, label in (("clean", CLEAN, "clean, validation"), ("robust", ROBUST, "PGD-10, validation")):
        points = [(row["step"], row["validation"][name]) for row in validations if name in row["validation"]]
        if points:
            at, values = zip(*points, strict=True)
            middle = np.array([100 * v["accuracy"] for v in values])
            ends = np.array([[100 * v["ci_low"] for v in values], [100 * v["ci_high"] for v in values]])
            spread = np.abs(ends - middle)
            axes.errorbar(at, middle, spread, fmt="o", ms=5, color=colour, capsize=3, lw=1, label=label)
    axes.set_ylim(0, 100)


def _line(axes: Axes, rows: MetricRows, name: str, colour: str, label: str, factor: float = 1) -> None:
    """A faint line through every value and a strong one through means of their neighbourhood."""
    points = [(row["step"], factor * row[name]) for row in rows if name in row]
    if not points:
        return
    x, y = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    width = max(1, len(y) // WINDOWS)
    if width > 1:
        axes.plot(x, y, color=colour, lw=0.8, alpha=0.25)
    weights = np.convolve(np.ones_like(y), np.ones(width), "same")
    axes.plot(x, np.convolve(y, np.ones(width), "same") / weights, color=colour, lw=1.6, label=label)


def _style(axes: Axes, best_step: int | None) -> None:
    if best_step is not None:
        axes.axvline(best_step, color=FAINT, lw=1, ls=":", label=f"chosen: step {best_step}")
    axes.set_xlabel("step", color=FAINT, fontsize=9)
    axes.tick_params(colors=FAINT, labelsize=9)
    axes.grid(color="#d0d7de", lw=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK)
