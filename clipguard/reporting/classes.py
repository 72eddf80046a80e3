"""Results by class: who holds, who falls, and what a class is taken for under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps

from clipguard.figures.style import INK, Plot, label, new_figure
from clipguard.figures.text import Ruler
from clipguard.reporting.board import CLEAN, Board, short_names
from clipguard.reporting.plots import percent, slug

MOST_CLASSES = 24  # of one heat map: half of them the least robust, half the most
MOST_CONFUSIONS = 5  # of a model on a data set
MOST_MAPS = 24
NAME_PIXELS = 230
COLOURS = "cividis"  # the same to all kinds of colour vision, and in grey


def worst_case(samples: pd.DataFrame) -> pd.DataFrame:
    """One row an image and eps (`robust`: no attack of the run broke it; clean at eps 0)."""
    keys = ["model", "dataset", "index", "label", "eps"]
    return samples.groupby(keys, observed=True)["robust"].all().reset_index()


def class_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in [0,1] by class number and eps, of one model on one data set; the least robust class first.

    Robust means no attack broke it. Classes are ordered by their average over eps above 0, then by clean accuracy.
    """
    rows = worst_case(samples)
    table = rows.pivot_table(index="label", columns="eps", values="robust", aggfunc="mean")
    attacked = table.drop(columns=0.0).mean(axis=1)
    order = pd.DataFrame({"attacked": attacked, "clean": table[0.0], "number": table.index})
    return table.loc[order.sort_values(["attacked", "clean", "number"]).index]


def pairs(board: Board) -> list[tuple[str, str]]:
    """(model, data set) of everything that was attacked."""
    return list(dict.fromkeys((c.model, c.dataset) for c in board.cells if c.attack != CLEAN))


def heat_maps(board: Board) -> list[Plot]:
    """Accuracy by class and eps, a plot for each model and data set, the first `MOST_MAPS`."""
    return [_heat_map(board, *pair) for pair in pairs(board)[:MOST_MAPS]]


def _heat_map(board: Board, model: str, dataset: str) -> Plot:
    s = board.samples
    table = class_table(s[(s["model"] == model) & (s["dataset"] == dataset)])
    names, n = board.class_names[model, dataset], len(table)
    half = MOST_CLASSES // 2
    shown = table if n <= MOST_CLASSES else pd.concat([table.iloc[:half], table.iloc[-half:]])
    note = "" if n <= MOST_CLASSES else f" ({half} least and {half} most robust of {n} classes)"
    columns = ["clean" if eps == 0 else board.eps_text(eps) for eps in map(float, shown.columns)]
    ruler = Ruler()
    labels = [ruler.fit(names[number], NAME_PIXELS, 15) for number in shown.index]
    figure, axes = new_figure(1.9 + 0.62 * len(columns), 0.75 + 0.235 * len(shown))
    values = shown.to_numpy()
    axes.pcolormesh(values, cmap=COLOURS, vmin=0, vmax=1, edgecolors="none", rasterized=False)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels, parse_math=False)
    axes.tick_params(length=0, labelcolor=INK)
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    for spine in axes.spines.values():
        spine.set_visible(False)
    _write_values(axes, values)
    if n > MOST_CLASSES:
        axes.axhline(half, color=INK, lw=1.2)
    label(axes, f"{short_names(board.models)[model]} · {dataset}", "", "")
    title = f"Accuracy in % by class and eps, {model} on {dataset}{note}"
    rows = [[names[k], *(percent(v) for v in row)] for k, row in zip(shown.index, values, strict=True)]
    alt = (
        f"{title}. Least robust: {', '.join(r[0] for r in rows[:3])}. Most robust: "
        f"{', '.join(r[0] for r in rows[:-4:-1])}."
    )
    return Plot(slug("classes", board.norm, model, dataset), title, alt, figure, ("class", *columns), rows)


def _write_values(axes: Any, values: Any) -> None:
    """Percentages in the cells, black or white by what is under them."""
    for (y, x), value in np.ndenumerate(values):
        red, green, blue, _ = colormaps[COLOURS](value)
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.42
        text = "–" if np.isnan(value) else f"{100 * value:.0f}"
        axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")


@dataclass(frozen=True)
class Confusion:
    """How often images of `true`, right when clean, were taken for `taken_for` under attack; of `of` such images."""

    model: str
    dataset: str
    true: str
    taken_for: str
    count: int
    of: int


def confusions(board: Board, eps: float) -> list[Confusion]:
    """The most frequent confusions at one eps for each model and data set, under the attack that ran last."""
    out: list[Confusion] = []
    for model, dataset in pairs(board):
        s = board.samples
        rows = s[(s["model"] == model) & (s["dataset"] == dataset) & (s["eps"] == eps) & (s["attack"] != CLEAN)]
        if rows.empty:
            continue
        rows = rows[rows["attack"] == rows["attack"].iloc[-1]]
        right = rows[rows["clean_pred"] == rows["label"]]
        of = right["label"].value_counts()
        counts = (
            right[~right["robust"]].groupby(["label", "adv_pred"]).size().sort_values(ascending=False, kind="stable")
        )
        names = board.class_names[model, dataset]
        out += [
            Confusion(model, dataset, names[true], names[taken], int(count), int(of[true]))
            for (true, taken), count in _pairs_of(counts.iloc[:MOST_CONFUSIONS])
        ]
    return out


def _pairs_of(counts: Any) -> Sequence[tuple[tuple[int, int], int]]:
    return list(counts.items())
