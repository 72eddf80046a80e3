"""The table and the plot of the fine-tuning study, from the records in `results/finetuning_study/`.

`python finetuning_table.py` writes `results/finetuning_study.md`, `.json` and `.png`. Accuracies are means over the
four sets, each of as many images; "robust" is the mean over the evaluated eps, "harmonic" the harmonic mean of clean
and robust. Spread: standard deviation over seeds. The test pairs TIMA with the best baseline image by image: an image's
outcome is its mean over seeds; 95 % interval by bootstrap over images, p by a sign-flip permutation test.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from common import RESULTS
from finetuning_study import ABLATIONS, EPS, EVALUATED, N_CONFIRM, TRAINED_ON, N
from matplotlib import pyplot as plt
from scipy.stats import bootstrap, permutation_test

Record = dict[str, Any]
COLOURS = {
    "none": "#59636e",
    "clean": "#7d4e00",
    "tecoa": "#116329",
    "fare": "#0b5fff",
    "pmg-aft": "#6f42c1",
    "tima": "#b3261e",
}
MARKERS = {1: "^", 4: "o", 8: "s"}  # by eps of training
SCOPES = ("all sets", "seen classes", "unseen classes")


def label(method: str, eps: int) -> str:
    """A method and the eps that it was trained at, if at any."""
    return method if method in ("none", "clean") else f"{method}, eps {eps}"


def figures(record: Record, scope: str = SCOPES[0]) -> dict[str, float]:
    """Accuracies in % of one run: clean, at each eps, and the summaries."""
    sets = [
        accuracy
        for name, accuracy in record["accuracy"].items()
        if scope == SCOPES[0] or (name == TRAINED_ON) == (scope == SCOPES[1])
    ]
    values = {eps: 100 * statistics.mean(s[eps] for s in sets) for eps in ("0", *EVALUATED)}
    robust = statistics.mean(values[eps] for eps in EVALUATED)
    found = {"clean": values["0"]} | {f"eps {eps}": values[eps] for eps in EVALUATED} | {"robust": robust}
    found["average"] = (values["0"] + robust) / 2
    found["harmonic"] = statistics.harmonic_mean([values["0"], robust])
    return found


def summary(records: Sequence[Record], scope: str = SCOPES[0]) -> dict[str, tuple[float, float | None]]:
    """Mean, and standard deviation over seeds where there are several."""
    runs = [figures(record, scope) for record in records]
    return {
        name: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)
        for name, values in ((name, [run[name] for run in runs]) for name in runs[0])
    }


def paired(ours: Sequence[Record], theirs: Sequence[Record], eps: str) -> dict[str, float]:
    """How much more accurate `ours` is at an eps, in points, with its 95 % interval and p-value."""
    n = N * len(ours[0]["accuracy"])
    means = []
    for records in (ours, theirs):
        counts = Counter(image for record in records for image in record["robust_images"][eps])
        means.append({image: count / len(records) for image, count in counts.items()})
    differences = np.array([means[0].get(image, 0) - means[1].get(image, 0) for image in {*means[0], *means[1]}])
    differences = 100 * np.concatenate([differences, np.zeros(n - len(differences))])  # broken for every seed of both
    rng = np.random.default_rng(0)
    interval = bootstrap((differences,), np.mean, method="percentile", rng=rng).confidence_interval
    test = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=rng)
    return {
        "points": round(float(differences.mean()), 2),
        "low": round(float(interval.low), 2),
        "high": round(float(interval.high), 2),
        "p": round(float(test.pvalue), 4),
    }


def table(rows: dict[str, dict[str, tuple[float, float | None]]], first: str) -> list[str]:
    """A Markdown table; the best value of each column is bold."""
    columns = list(next(iter(rows.values())))
    best = {column: max(row[column][0] for row in rows.values()) for column in columns}
    lines = [f"| {first} | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, row in rows.items():
        cells = []
        for column in columns:
            mean, spread = row[column]
            cell = f"**{mean:.1f}**" if mean == best[column] else f"{mean:.1f}"
            cells.append(cell if spread is None else f"{cell} ± {spread:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def margin_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: what TIMA's papers say of logit margins; means over the sets."""
    shown = ("0", "1", "4", "8", "16")
    head = [f"margin at {eps}" for eps in shown]
    columns = ["method", *head, "offset, 1 to 8", "its deviation over images", "correlation with text cosine"]
    lines = ["### Logit margins under PGD-10, one seed", "", f"| {' | '.join(columns)} |"]
    lines.append(f"| --- |{' ---: |' * (len(columns) - 1)}")
    for name, sets in found.items():
        parts = list(sets.values())
        offsets = zip(*(part["offset from 1 to 8"] for part in parts), strict=True)
        values = [statistics.mean(part["mean"][f"{float(eps)}"] for part in parts) for eps in shown]
        values += [statistics.mean(values) for values in offsets]
        values.append(statistics.mean(part["correlation with text cosine"] for part in parts))
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return [*lines, ""]


def plot(groups: dict[tuple[str, int], list[Record]]) -> None:
    """Left: accuracy against eps, a band from the worst to the best seed. Right: clean against robust."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=150, layout="constrained")
    names = ["clean", *(f"eps {eps}" for eps in EVALUATED)]
    radii = [0.0, *map(float, EVALUATED)]
    for (method, eps), records in groups.items():
        runs, colour = [figures(record) for record in records], COLOURS[method]
        means = summary(records)
        if eps in (0, EPS):
            left.plot(radii, [means[name][0] for name in names], "o-", color=colour, label=method, markersize=4)
            low, high = ([pick(run[name] for run in runs) for name in names] for pick in (min, max))
            left.fill_between(radii, low, high, color=colour, alpha=0.15, linewidth=0)
        marker = "o" if method in ("none", "clean") else MARKERS[eps]
        right.scatter([r["clean"] for r in runs], [r["robust"] for r in runs], 12, colour, marker=marker, alpha=0.4)
        right.scatter(means["clean"][0], means["robust"][0], 50, colour, marker=marker, edgecolor="white")
    for eps, marker in MARKERS.items():
        right.scatter([], [], 40, "#59636e", marker=marker, label=f"trained at eps {eps}")
    right.legend(frameon=False, loc="lower left")
    left.set(xlabel="eps of the attack (1/255)", ylabel="accuracy (%)", ylim=(0, None), xticks=radii)
    left.set_title(f"Trained at eps {EPS}/255 (bands: seeds)", fontsize=10)
    left.legend(frameon=False)
    right.set(xlabel="clean accuracy (%)", ylabel=f"mean robust accuracy at eps {', '.join(EVALUATED)} (%)")
    right.set_title("Clean against robust; colours as left, small: single seeds", fontsize=10)
    figure.savefig(RESULTS / "finetuning_study.png")


def main() -> None:
    records = [json.loads(path.read_text()) for path in sorted((RESULTS / "finetuning_study").glob("*.json"))]
    groups: dict[tuple[str, int], list[Record]] = {}
    order = list(COLOURS)
    trained = (r for r in records if r["stage"] == "train")
    for record in sorted(trained, key=lambda r: (order.index(r["method"]), r["eps"])):
        groups.setdefault((record["method"], record["eps"]), []).append(record)
    baselines = [key for key in groups if key[0] not in ("none", "tima") and key[1] == EPS]
    best = max(baselines, key=lambda key: summary(groups[key])["average"][0])
    content: dict[str, Any] = {"best baseline": best[0]}
    lines = []
    for scope in SCOPES:
        rows = {label(*key): summary(group, scope) for key, group in groups.items()}
        content[scope] = rows
        lines += [f"### {scope[0].upper()}{scope[1:]}", "", *table(rows, "method")]
    content["paired"] = {
        str(e): {eps: paired(groups["tima", e], groups[best[0], e], eps) for eps in ("0", *EVALUATED)}
        for m, e in groups
        if m == "tima" and (best[0], e) in groups
    }
    lines += [f"### TIMA minus {best[0]}, image by image", "", "| trained at | attacked at | points | 95 % | p |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: |"]
    for trained, tests in content["paired"].items():
        for eps, t in tests.items():
            row = (trained, eps, f"{t['points']:+.1f}", f"{t['low']:+.1f} to {t['high']:+.1f}", f"{t['p']:.4f}")
            lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    named = {"tima": "tima", **{method: name for name, method in ABLATIONS.items()}}
    first = {m: r for (m, e), group in groups.items() if e in (0, EPS) for r in group if r["seed"] == 0}
    sections = {
        "rate": "All at TIMA's learning rate, eps 4, one seed",
        "ablate": "Ablations, trained at eps 8, one seed",
        "confirm": f"autoattack-fast, {N_CONFIRM} images a set, one seed",
    }
    for stage, title in sections.items():
        chosen = [r for r in records if r["stage"] == stage]
        if not chosen:
            continue
        if stage == "rate":
            chosen += [r for m, r in first.items() if r["lr"] == chosen[0]["lr"]]
            rows = {r["method"]: summary([r]) for r in sorted(chosen, key=lambda r: order.index(r["method"]))}
        elif stage == "ablate":
            chosen += [r for r in groups.get(("tima", 8), []) if r["seed"] == 0]
            rows = {
                named[r["method"]]: summary([r]) for r in sorted(chosen, key=lambda r: list(named).index(r["method"]))
            }
        else:
            chosen.sort(key=lambda r: (order.index(r["method"]), r["eps"]))
            rows = {label(r["method"], r["eps"]): summary([r]) for r in chosen}
            content["margins"] = {label(r["method"], r["eps"]): r["margins"] for r in chosen}
        content[stage] = rows
        lines += [f"### {title}", "", *table(rows, "TIMA" if stage == "ablate" else "method")]
        if stage == "confirm":
            lines += margin_table(content["margins"])
    content["texts"] = {
        f"{r['stage']}: {named.get(r['method'], r['method'])}, eps {r['eps']}, seed {r['seed']}": r["texts"]
        for r in records
        if "texts" in r
    }
    (RESULTS / "finetuning_study.md").write_text("\n".join(lines).rstrip() + "\n")
    (RESULTS / "finetuning_study.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(groups)


if __name__ == "__main__":
    main()
