"""The plots of a report: accuracy against eps, the trade-off, and what broke what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from clipguard.benchmark.results.table import AVERAGE
from clipguard.figures.style import FAINT, INK, LINE, PAPER, SERIES, Plot, label, legend, new_figure, series
from clipguard.reporting.board import CLEAN, Board, short_names

ROBUST, WRONG = "robust", "wrong when clean"
LEGEND_COLUMNS = 2  # of model names, which are long


def slug(*parts: str) -> str:
    """A file name of words: `robust-accuracy-emoji-food-pgd-10`."""
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-.")


def percent(value: float) -> str:
    """`67.5`"""
    return f"{100 * value:.1f}"


def panel_name(board: Board, dataset: str) -> str:
    """The data set, or what the average is over."""
    return f"average over {len(board.shared)} data sets" if dataset == AVERAGE else dataset


def eps_label(board: Board) -> str:
    """The axis of eps."""
    return "eps, in 1/255 (linf)" if board.norm == "linf" else f"eps ({board.norm})"


def accuracy_curves(board: Board) -> list[Plot]:
    """Accuracy against eps, a plot for each attack and data set; a band is the 95 % interval."""
    return [
        _curve(board, attack, dataset)
        for attack in board.attacks
        for dataset in board.panels()
        if any(_points(board, model, dataset, attack) for model in board.models)
    ]


def _points(board: Board, model: str, dataset: str, attack: str) -> list[tuple[float, tuple[float, float, float]]]:
    """(eps, (accuracy, low, high)) of a curve, clean first; none where the attack did not run."""
    points = [(eps, p) for eps in board.eps if (p := board.point(model, dataset, attack, eps))]
    clean = board.point(model, dataset, CLEAN, 0.0)
    return [(0.0, clean), *points] if points and clean else points


def _curve(board: Board, attack: str, dataset: str) -> Plot:
    figure, axes = new_figure()
    names = short_names(board.models)
    rows: list[list[str]] = []
    for number, model in enumerate(board.models):
        points = _points(board, model, dataset, attack)
        if not points:
            continue
        colour, marker = series(number)
        x = [eps for eps, _ in points]
        middle, low, high = ([100 * value for value in values] for values in zip(*(p for _, p in points), strict=True))
        axes.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)
        axes.plot(x, middle, color=colour, marker=marker, ms=4, lw=1.5, clip_on=False, label=names[model])
        rows += [
            [model, f"{eps:g}", f"{m:.1f}", f"{lo:.1f}–{hi:.1f}"]
            for eps, m, lo, hi in zip(x, middle, low, high, strict=True)
        ]
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.set_xticks([0, *board.eps])
    axes.grid(color=LINE, lw=0.5)
    label(axes, f"{panel_name(board, dataset)} · {attack}", eps_label(board), "accuracy in %")
    legend(figure, axes, LEGEND_COLUMNS)
    title = f"Accuracy against eps, {panel_name(board, dataset)}, {attack}"
    alt = f"{title}. " + " ".join(_told(rows, model) for model in dict.fromkeys(row[0] for row in rows))
    return Plot(
        slug("accuracy", board.norm, dataset, attack), title, alt, figure, ("model", "eps", "accuracy", "95 %"), rows
    )


def _told(rows: Sequence[Sequence[str]], model: str) -> str:
    """`tiny: 63.7 % at eps 0, 58.7 % at eps 1.`"""
    return f"{model}: " + ", ".join(f"{m} % at eps {eps}" for name, eps, m, _ in rows if name == model) + "."


def trade_offs(board: Board) -> list[Plot]:
    """Clean against robust accuracy, a plot for each attack and eps, over the data sets that all models have."""
    if not board.shared:
        return []
    return [_trade_off(board, attack, eps) for attack in board.attacks for eps in board.eps]


def _trade_off(board: Board, attack: str, eps: float) -> Plot:
    figure, axes = new_figure(3.6, 3.4)
    names, over = short_names(board.models), AVERAGE if len(board.shared) > 1 else board.shared[0]
    rows = []
    for number, model in enumerate(board.models):
        clean, robust = board.point(model, over, CLEAN, 0.0), board.point(model, over, attack, eps)
        if not clean or not robust:
            continue
        colour, marker = series(number)
        (x, *x_ends), (y, *y_ends) = ([100 * v for v in values] for values in (clean, robust))
        spread = [[[abs(v - end)] for end in ends] for v, ends in ((x, x_ends), (y, y_ends))]
        style: dict[str, Any] = {"fmt": marker, "ms": 6, "lw": 1, "capsize": 2}
        axes.errorbar([x], [y], xerr=spread[0], yerr=spread[1], color=colour, label=names[model], **style)
        intervals = [f"{low:.1f}–{high:.1f}" for low, high in (x_ends, y_ends)]
        rows.append([model, f"{x:.1f}", intervals[0], f"{y:.1f}", intervals[1]])
    axes.axline((0, 0), slope=1, color=FAINT, lw=0.7, ls=":")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
    axes.grid(color=LINE, lw=0.5)
    label(axes, f"{attack} {board.eps_text(eps)}", "clean accuracy in %", "robust accuracy in %")
    legend(figure, axes, LEGEND_COLUMNS)
    title = f"Clean and robust accuracy, {attack} at {board.eps_text(eps)}, {panel_name(board, over)}"
    alt = f"{title}. " + " ".join(f"{m}: clean {x} %, robust {y} %." for m, x, _, y, _ in rows)
    header = ("model", "clean", "95 %", "robust", "95 %")
    return Plot(slug("trade-off", board.norm, attack, f"{eps:g}"), title, alt, figure, header, rows)


def broken_shares(board: Board) -> list[Plot]:
    """What became of the images, a plot for each attack: stacked shares for every model and eps, data sets pooled."""
    return [_shares(board, attack) for attack in board.attacks]


def share_table(board: Board, attack: str) -> pd.DataFrame:
    """Shares in [0,1], a row for each (model, eps), pooled over data sets: robust, broken by ..., wrong when clean."""
    rows = board.samples[board.samples["attack"] == attack]
    what = rows["broken_by"].astype(object).where(rows["broken_by"].notna(), ROBUST).replace("clean", WRONG)
    counts = pd.crosstab([rows["model"], rows["eps"]], what, normalize="index")
    stages = list(dict.fromkeys(w for w in what if w not in (ROBUST, WRONG)))
    columns = [ROBUST, *sorted(stages), WRONG]
    order = [(m, e) for m in board.models for e in board.eps if (m, e) in counts.index]
    return counts.reindex(index=pd.MultiIndex.from_tuples(order, names=counts.index.names), columns=columns).fillna(0.0)


def _shares(board: Board, attack: str) -> Plot:
    table, names = share_table(board, attack), short_names(board.models)
    bars = [f"{names[model]} · {board.eps_text(eps)}" for model, eps in table.index]
    figure, axes = new_figure(6.4, 1.1 + 0.26 * len(bars))
    left = [0.0] * len(bars)
    stages = [c for c in table.columns if c not in (ROBUST, WRONG)]
    colours = dict(zip(stages, (SERIES[1], SERIES[4], SERIES[3], SERIES[6], SERIES[5]) * 9, strict=False))
    colours |= {ROBUST: SERIES[0], WRONG: SERIES[7]}
    for column in table.columns:
        widths = [100 * value for value in table[column]]
        axes.barh(bars, widths, left=left, color=colours[column], label=column, height=0.72, edgecolor=PAPER, lw=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    label(axes, attack, "images in %", "")
    legend(figure, axes, min(len(table.columns), 4))
    over = "all images of all data sets"
    title = f"What became of the images under {attack}, {over}"
    header = ("model", "eps", *table.columns)
    rows = [
        [m, f"{e:g}", *(percent(v) for v in values)]
        for (m, e), values in zip(table.index, table.to_numpy(), strict=True)
    ]
    alt = f"{title}. " + " ".join(
        f"{row[0]} at eps {row[1]}: " + ", ".join(f"{c} {v} %" for c, v in zip(header[2:], row[2:], strict=True)) + "."
        for row in rows
    )
    return Plot(slug("broken-by", board.norm, attack), title, alt, figure, header, rows)
