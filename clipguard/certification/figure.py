"""The plot of a certification: certified accuracy against radius, a curve for each model and sigma."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from clipguard.certification.result import CertifiedCell, CertifyResult, at_radius
from clipguard.figures.style import LINE, Plot, label, legend, new_figure, series, style

MOST_POINTS = 200  # of a curve
LONGEST_NAME = 36  # of a model, in the legend


def certified_plots(result: CertifyResult) -> list[Plot]:
    """A plot for each data set; a band is the 95 % interval."""
    return [_plot(result, dataset) for dataset in dict.fromkeys(cell.dataset for cell in result.cells)]


def _plot(result: CertifyResult, dataset: str) -> Plot:
    cells = [cell for cell in result.cells if cell.dataset == dataset]
    several = len({cell.model for cell in cells}) > 1
    names = [f"{_end(cell.model)}, sigma {cell.sigma:g}" if several else f"sigma {cell.sigma:g}" for cell in cells]
    title = f"Certified accuracy, {dataset}" if several else f"{_end(cells[0].model)} on {dataset}"
    with style("".join([title, *names])):
        figure, axes = new_figure()
        for number, (cell, name) in enumerate(zip(cells, names, strict=True)):
            colour, _ = series(number)
            x, middle, low, high = _curve(result.samples, cell)
            axes.fill_between(x, low, high, step="pre", color=colour, alpha=0.14, lw=0)
            axes.plot(x, middle, drawstyle="steps-pre", color=colour, lw=1.5, label=name)
        axes.set_ylim(0, 100)
        axes.set_xlim(0, 1.05 * max(cell.largest_radius for cell in cells))
        axes.grid(color=LINE, lw=0.5)
        label(axes, title, "l2 radius, in pixels of [0,1]", "certified accuracy in %")
        legend(figure, axes, 1 if several else 3)
    rows = [
        [
            name,
            f"{share.radius:g}",
            f"{100 * share.accuracy:.1f}",
            f"{100 * share.ci_low:.1f}–{100 * share.ci_high:.1f}",
        ]
        for cell, name in zip(cells, names, strict=True)
        for share in cell.certified
    ]
    alt = f"{title}. " + " ".join(f"{name}: {accuracy} % at radius {radius}." for name, radius, accuracy, _ in rows)
    slug = re.sub(r"[^a-z0-9.]+", "-", dataset.lower()).strip("-.")
    return Plot(f"certified-{slug or 'data'}", title, alt, figure, ("curve", "radius", "accuracy", "95 %"), rows)


def _end(name: str) -> str:
    """The end of a long name, where paths differ."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _curve(samples: pd.DataFrame, cell: CertifiedCell) -> tuple[list[float], list[float], list[float], list[float]]:
    """Radii, and accuracy with its limits in % there: it holds from the radius before up to each, and 0 beyond."""
    rows = samples[
        (samples["model"] == cell.model) & (samples["dataset"] == cell.dataset) & (samples["sigma"] == cell.sigma)
    ]
    radii = np.unique(rows.loc[rows["certified"], "radius"])
    if len(radii) > MOST_POINTS:
        radii = np.quantile(radii, np.linspace(0, 1, MOST_POINTS))
    end = np.nextafter(cell.largest_radius, np.inf)
    x = [0.0, *(float(radius) for radius in radii if radius > 0), float(end)]
    points = [at_radius(rows, radius) for radius in x]
    middle, low, high = ([100 * getattr(p, name) for p in points] for name in ("accuracy", "ci_low", "ci_high"))
    return x, middle, low, high
