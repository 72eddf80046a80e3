"""Make the pictures of the README and the docs, `docs/images`, from runs of clipguard's own commands.

`python pictures.py` (or `make pictures`) fine-tunes the embedded model, benches every embedded model and the tuned
copy, attacks a few images of every embedded data set, writes a report of that, and draws. Runs are kept in
`build/pictures` and not made again; remove that folder to start over. Pictures of the report need Chromium.

Every number in a picture is read from the files that the commands wrote (docs/results.md).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Browser, ViewportSize, sync_playwright
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
RUNS, IMAGES = ROOT / "build" / "pictures", ROOT / "docs" / "images"
DATASETS = ("emoji-animals", "emoji-food", "emoji-objects", "emoji-travel")
METHOD, TUNED = "tima", "local-dir:tuned"
EPS, LOOK_EPS = (1, 4, 8), 4  # as in `make bench`
N, N_LOOK = 20, 12  # images of a data set: benched; attacked to be looked at
WIDTH, HEIGHT, DPI = 8.8, 3.85, 200  # inches of the README's picture
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Scheme:
    """Colours of a light or a dark picture; its paper is that of GitHub's pages."""

    name: str
    paper: str
    ink: str
    faint: str
    line: str
    right: str
    wrong: str
    series: tuple[str, ...]


SCHEMES = (
    Scheme(
        "light", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#116329", "#b3261e", ("#0072b2", "#d55e00", "#009e73")
    ),
    Scheme("dark", "#0d1117", "#f0f6fc", "#9198a1", "#3d444d", "#6fce92", "#ff9a90", ("#4ea6dc", "#f08239", "#35c39b")),
)
MARKERS = ("o", "s", "^")


def clipguard(*arguments: str) -> str:
    """Run a command in `RUNS`, where the paths in its results are short; its standard output."""
    command = [sys.executable, "-m", "clipguard", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    print("clipguard", *arguments, file=sys.stderr)
    return subprocess.run(command, cwd=RUNS, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def embedded_models() -> list[str]:
    """The names that `clipguard list models` shows first, without a colon."""
    lines = clipguard("list", "models").partition("\n\n")[0].splitlines()
    return [line.split()[0] for line in lines if line.strip() and ":" not in line]


def make_runs() -> None:
    """Everything that is drawn, as far as it is not there."""
    RUNS.mkdir(parents=True, exist_ok=True)
    if not (RUNS / "tuned" / "run.json").exists():
        clipguard("finetune", "--method", METHOD, "--templates", "single", "--out", "tuned")
    if not (RUNS / "bench" / "results.json").exists():
        models = [word for name in (*embedded_models(), TUNED) for word in ("--model", name)]
        eps = ",".join(map(str, EPS))
        clipguard("bench", *models, "--dataset", "embedded", "--eps", eps, "--n-samples", str(N), "--out", "bench")
    if not (RUNS / "first" / "run.json").exists():  # as docs/index.md has it
        clipguard(*shlex.split("attack --dataset emoji-food --eps 4 --n-samples 6 --attack pgd-10 --out first"))
    for name in DATASETS:
        if not (RUNS / name / "run.json").exists():
            budget, n = str(LOOK_EPS), str(N_LOOK)
            clipguard("attack", "--dataset", name, "--eps", budget, "--n-samples", n, "--out", name)
    if not (RUNS / "report.html").exists():
        title = f"Before and after fine-tuning with {METHOD.upper()}"
        clipguard("report", "bench", "--gallery", "4", "--title", title, "--out", "report.html")


# The picture of the README


@dataclass(frozen=True)
class Example:
    """An image that was broken: pixels (H, W, 3) in [0, 1], and class names."""

    dataset: str
    label: str
    taken_for: str
    clean: np.ndarray
    x_adv: np.ndarray


def first_broken(dataset: str) -> Example:
    """The first image of a run of `clipguard attack` that was right when clean and is not any more."""
    folder = RUNS / dataset
    rows = pd.read_parquet(folder / "samples.parquet").reset_index(drop=True)
    tensors = load_file(folder / "adversarial.safetensors")
    names = json.loads((folder / "run.json").read_text())["run"]["datasets"][dataset]["class_names"]
    broken = rows[~rows["robust"] & (rows["broken_by"] != "clean")]
    at = int(np.flatnonzero(tensors["indices"] == broken["index"].iloc[0])[0])
    row = broken.iloc[0]
    clean, x_adv = (tensors[key][at].transpose(1, 2, 0) for key in ("clean", "x_adv"))
    return Example(dataset, names[row["label"]], names[row["adv_pred"]], clean, x_adv)


def average_curve(model: str) -> tuple[list[float], np.ndarray]:
    """Eps, and rows of (accuracy, low, high) in %: unweighted over the data sets, intervals combined by MOVER."""
    cells = pd.read_csv(RUNS / "bench" / "results.csv")
    cells = cells[cells["model"] == model]
    eps = sorted(cells["eps"].unique())
    points = []
    for value in eps:
        own = cells[cells["eps"] == value]
        assert len(own) == len(DATASETS), f"{model} at eps {value}: {len(own)} data sets"
        middle = own["accuracy"].mean()
        below, above = (math.hypot(*(own["accuracy"] - own[end])) / len(own) for end in ("ci_low", "ci_high"))
        points.append([100 * middle, 100 * (middle - below), 100 * (middle + above)])
    return eps, np.array(points)


def printed_averages(model: str) -> list[str]:
    """The same averages as the table of the run prints them."""
    rows = [
        [cell.strip() for cell in line.split("|")] for line in (RUNS / "bench" / "results.md").read_text().splitlines()
    ]
    row = next(row for row in rows if row[1:3] == [model, "average"])
    return [cell.strip("*") for cell in row[4:-1]]


def model_label(name: str) -> str:
    """What a curve is called."""
    return f"tiny, fine-tuned with {METHOD.upper()}" if name == TUNED else f"{name} (embedded)"


def draw_front(scheme: Scheme) -> bytes:
    """Attacked images on the left, accuracy against eps on the right, as a PNG file."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor=scheme.paper)
    FigureCanvasAgg(figure)
    _draw_examples(figure, scheme)
    _draw_accuracy(figure.add_axes((0.605, 0.125, 0.365, 0.695)), scheme)
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor=scheme.paper)
    return shrink(content.getvalue())


def _head(figure: Figure, x: float, title: str, below: str, scheme: Scheme) -> None:
    figure.text(x, 0.955, title, fontsize=9.6, color=scheme.ink, va="center")
    figure.text(x, 0.895, below, fontsize=7.6, color=scheme.faint, va="center")


def _draw_examples(figure: Figure, scheme: Scheme) -> None:
    """Three rows of square images: clean, what was changed, and adversarial."""
    factor = math.floor(0.5 * 255 / LOOK_EPS)
    _head(figure, 0.012, f"clipguard attack: no pixel value moves by more than {LOOK_EPS}/255",
          "of each embedded data set, the first image that was right and is now wrong", scheme)  # fmt: skip
    high, left, across, tops = 0.207, 0.085, 0.1135, (0.82, 0.533, 0.3)
    wide = high * HEIGHT / WIDTH
    names = ("clean", f"change\n(×{factor})", "adversarial")
    for column, example in enumerate(map(first_broken, DATASETS)):
        change = np.clip(0.5 + factor * (example.x_adv - example.clean), 0, 1)
        words = (f"✓ {example.label}", "", f"✗ {example.taken_for}")
        for row, pixels in enumerate((example.clean, change, example.x_adv)):
            axes = figure.add_axes((left + column * across, tops[row] - high, wide, high))
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(scheme.line)
            colour = (scheme.right, scheme.faint, scheme.wrong)[row]
            axes.text(0.5, -0.07, words[row], color=colour, transform=axes.transAxes, fontsize=8, ha="center", va="top")
            if column == 0:
                axes.set_ylabel(names[row], fontsize=8, color=scheme.faint, labelpad=5)


def _draw_accuracy(axes: Axes, scheme: Scheme) -> None:
    models = list(dict.fromkeys(pd.read_csv(RUNS / "bench" / "results.csv")["model"]))
    curves = {name: average_curve(name) for name in models}
    assert isinstance(axes.figure, Figure)
    average = f"average of {len(DATASETS)} embedded data sets, {N * len(DATASETS)} images; bands: 95 % intervals"
    _head(axes.figure, 0.565, "clipguard bench: accuracy under attack", average, scheme)
    axes.set_facecolor(scheme.paper)
    for number, (name, (eps, points)) in enumerate(curves.items()):
        colour, marker = scheme.series[number], MARKERS[number]
        axes.fill_between(eps, points[:, 1], points[:, 2], color=colour, alpha=0.16, lw=0)
        axes.plot(
            eps, points[:, 0], color=colour, marker=marker, ms=4.5, lw=1.7, clip_on=False, label=model_label(name)
        )
        for at, (x, words) in enumerate(zip(eps, printed_averages(name), strict=True)):
            highest = points[at, 0] >= max(other[at, 0] for _, other in curves.values())
            side = {0.0: "left", float(max(EPS)): "right"}.get(x, "center")
            below = {0: -9, 1: -13}.get(at, -6)  # clear of the line, and of one another
            offset = ({"left": 4, "right": 3}.get(side, 0), 6 if highest else below)
            axes.annotate(words, (x, points[at, 0]), offset, textcoords="offset points", fontsize=7.6, color=colour,
                          ha=side, va="bottom" if highest else "top")  # fmt: skip
    axes.set_xlim(0, max(EPS))
    axes.set_ylim(0, 100)
    axes.set_xticks([0, *EPS])
    axes.grid(color=scheme.line, lw=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=scheme.faint, labelsize=8, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(scheme.line)
    axes.set_xlabel("eps of the attack, in 1/255 (linf)", fontsize=8, color=scheme.faint)
    axes.set_ylabel("accuracy in %", fontsize=8, color=scheme.faint)
    axes.legend(fontsize=8, frameon=False, labelcolor=scheme.ink, loc="upper right", borderaxespad=0)


# Pictures of what the commands themselves draw


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium; its sandbox cannot start as root, as in most containers."""
    with sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


def photograph_report(browser: Browser, scheme: Scheme) -> dict[str, bytes]:
    """The beginning of the report, its curve of the average, and its gallery, as PNG files by name."""
    colours: Literal["light", "dark"] = "dark" if scheme.name == "dark" else "light"
    size: ViewportSize = {"width": 1000, "height": 1200}
    page = browser.new_context(viewport=size, color_scheme=colours, device_scale_factor=1.5).new_page()
    page.goto((RUNS / "report.html").as_uri())
    page.add_style_tag(content="ul.gallery, .plots svg { padding: 12px }")  # a margin for the pictures of a part
    table = page.locator("p.under").first.bounding_box()
    assert table is not None
    height = table["y"] + table["height"] + 24
    found = {"report": page.screenshot(clip={"x": 0, "y": 0, "width": size["width"], "height": height})}
    found["curves"] = page.locator('svg[aria-label^="Accuracy against eps, average"]').screenshot()
    page.set_viewport_size({"width": 1240, "height": 1200})
    found["gallery"] = page.locator("ul.gallery").screenshot()
    return {f"{name}-{scheme.name}.png": shrink(content, name != "gallery") for name, content in found.items()}


def shrink(png: bytes, palette: bool = False) -> bytes:
    """The same picture in fewer bytes. A palette saves most, but moves pixels, as attacks do: for words and lines."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if palette:
        picture = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def draw() -> dict[str, bytes]:
    """All pictures by file name."""
    found = {f"front-{scheme.name}.png": draw_front(scheme) for scheme in SCHEMES}
    found["grid-first.png"] = shrink((RUNS / "first" / "grid.png").read_bytes())
    found["grid.png"] = shrink((RUNS / DATASETS[0] / "grid.png").read_bytes())
    found["training.png"] = shrink((RUNS / "tuned" / "curves.png").read_bytes(), palette=True)
    with chromium() as browser:
        for scheme in SCHEMES:
            found |= photograph_report(browser, scheme)
    return found


def main() -> None:
    """Make the runs that are not there, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no Chromium here, which the pictures of the report need: apt install chromium")
    make_runs()
    pictures = draw()
    IMAGES.mkdir(exist_ok=True)
    for name, content in pictures.items():
        (IMAGES / name).write_bytes(content)
        print(f"{len(content):>8,} {name}")


if __name__ == "__main__":
    main()
