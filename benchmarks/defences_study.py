"""What is left of defences at test time when they are attacked by who knows them?

`python defences_study.py --model tiny tiny emoji-food 1` measures a model without a defence and with each of them:
clean accuracy, images of the undefended model (the papers' way), attacks through the defence, queries, and the worst
case; passes of each; what gates flag. Random defences run with several seeds, each with images of its own, on which the
undefended model is measured, too. What is measured is kept in `--store`, so that a study that was cut off goes on.
Writes `results/defences_study.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from common import RESULTS, provenance, save
from matplotlib.figure import Figure

import clipguard
from clipguard.core.markdown import markdown_table
from clipguard.figures.style import FAINT, LINE, SERIES, style

DEFENSES = (
    "anti-adversary",
    "csr",
    "et3",
    "clipure-cos",
    "tte",
    "jpeg",
    "bit-depth",
    "ttc",
    "doc",
    "random-resize",
    "smoothing(samples=25)",
    "r-tpt(views=16)",
)
COLUMNS = ("clean", "transfer", "adaptive", "black-box", "worst case")


def measure(model: list[str], defense: str | None, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One model, with a defence or without, under one seed."""
    name, spec, dataset, eps = model
    started = time.perf_counter()
    given: dict[str, Any] = {"n_samples": args.images, "seed": seed, "device": "cpu", "store": args.store}
    if defense:
        given |= {"defense": defense, "votes": args.votes, "draws": args.draws}
    result = clipguard.bench(spec, dataset, str(eps), args.attack, **given)
    cells = {"clean" if cell.attack == "none" else cell.attack: cell for cell in result.cells}
    if not defense:  # one column is all there is
        cells = {"clean": cells["clean"]} | dict.fromkeys(COLUMNS[1:], cells[args.attack])
    stages: dict[str, int] = {}
    for cost in result.run["costs"]:
        parts = [*cost["stages"].values(), *cost.get("stored", {}).values()]
        stages[cost["attack"]] = sum(part["forward"] + part["backward"] for part in parts)
    numbers = {f["id"]: f["numbers"] for entry in result.run["findings"] for f in entry["findings"]}
    return {
        "model": name,
        "spec": Path(spec).name,
        "dataset": Path(dataset).name,
        "eps": eps,
        "defense": defense or "none",
        "seed": seed,
        "n": cells["clean"].n,
        "random": result.run.get("defense", {}).get("random", False),
        "accuracy": {c: [cells[c].accuracy, cells[c].ci_low, cells[c].ci_high] for c in COLUMNS if c in cells},
        "passes_an_image": result.run.get("defense", {}).get("passes", [1, 0]),
        "passes": stages,
        "gate": numbers.get("defense-gate", {}),
        "labels": numbers.get("defense-labels", {}),
        "seconds": round(time.perf_counter() - started, 1),
    }


def mean(rows: list[dict[str, Any]], column: str) -> float | None:
    """The accuracy in per cent of a column over all seeds."""
    values = [row["accuracy"][column][0] for row in rows if column in row["accuracy"]]
    return 100 * sum(values) / len(values) if values else None


def by_defense(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Rows of all seeds by model, defence and number of images."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["defense"], row["n"]), []).append(row)
    return groups


def undefended(groups: dict[tuple[str, str, int], list[dict[str, Any]]], group: list[dict[str, Any]]) -> float:
    """The robust accuracy in per cent without a defence, on the images of a group: a seed chooses them."""
    alone = {row["seed"]: row for row in groups[group[0]["model"], "none", group[0]["n"]]}
    found = mean([alone[row["seed"]] for row in group], "worst case")
    assert found is not None
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A line a model and defence; accuracies in per cent, the worst case with its 95 % interval over images;
    of several seeds the means.
    """
    headings = ["model", "defence", "n", "seeds", *COLUMNS, "claimed gain", "gain left", "passes", "flags"]
    lines = []
    groups = by_defense(rows)
    for (model, defense, _), group in groups.items():
        base = undefended(groups, group)
        shown = [mean(group, column) for column in COLUMNS]
        texts = ["–" if value is None else f"{value:.1f}" for value in shown]
        low, high = (100 * sum(row["accuracy"]["worst case"][k] for row in group) / len(group) for k in (1, 2))
        texts[-1] += f" ({low:.0f}–{high:.0f})"
        gains = [f"{value - base:+.1f}" for value in (shown[1], shown[4])] if defense != "none" else ["–", "–"]
        forward, backward = group[0]["passes_an_image"]
        first = group[0]
        name = f"{model}, {first['dataset']}, eps {first['eps']}/255"
        gate = first["gate"]
        flags = f"{gate['flagged']} of {gate['n']}" if gate else "–"
        passes = f"{forward} + {backward}"
        lines.append([name, defense, str(first["n"]), str(len(group)), *texts, *gains, passes, flags])
    return "\n".join(markdown_table(headings, lines, "ll" + "r" * (len(headings) - 2))) + "\n"


def summary(rows: list[dict[str, Any]]) -> str:
    """A line a defence and a column a model: claimed gain -> gain left, in points of robust accuracy."""
    groups = by_defense(rows)
    models = {row["model"]: row for row in rows}
    defenses = [defense for defense in dict.fromkeys(row["defense"] for row in rows) if defense != "none"]
    headings = [
        "defence",
        *(f"{name}, {row['dataset'].split('-test')[0]}, {row['eps']}/255" for name, row in models.items()),
    ]
    of_most = {(model, defense): group for (model, defense, n), group in sorted(groups.items(), key=lambda g: g[0][2])}
    alone = [f"{mean(of_most[model, 'none'], 'worst case'):.0f} %" for model in models]
    lines = [["none: robust accuracy", *alone]]
    for defense in defenses:
        cells = []
        for model in models:
            if (model, defense) not in of_most:
                cells.append("–")
                continue
            group = of_most[model, defense]
            base = undefended(groups, group)
            cells.append(" → ".join(f"{mean(group, column) - base:+.1f}" for column in ("transfer", "worst case")))
        lines.append([defense, *cells])
    return "\n".join(markdown_table(headings, lines, "l" + "r" * len(models))) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Claimed gain (transfer) and what is left of it (worst case): a panel a model, a line a defence."""
    groups = by_defense(rows)
    models = list(dict.fromkeys(model for model, _, _ in groups))
    defenses = list(dict.fromkeys(defense for _, defense, _ in groups if defense != "none"))
    with style():
        figure = Figure(figsize=(2.4 + 1.7 * len(models), 1.4 + 0.25 * len(defenses)), layout="constrained")
        panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            axes.axvline(0, color=LINE, zorder=0)
            for defense in defenses:
                counts = [n for other, name, n in groups if (other, name) == (model, defense)]
                if not counts:
                    continue
                group = groups[model, defense, max(counts)]
                base = undefended(groups, group)
                claimed, left = (mean(group, column) - base for column in ("transfer", "worst case"))
                y = -defenses.index(defense)
                axes.plot([claimed, left], [y, y], color=FAINT, linewidth=1.2, zorder=1)
                hollow = {"facecolors": "white", "edgecolors": SERIES[0], "zorder": 2}  # larger: seen behind
                axes.scatter([claimed], [y], s=52, label="claimed (transfer)", **hollow)
                axes.scatter([left], [y], s=28, color=SERIES[1], zorder=3, label="left (worst case)")
            first = next(row for row in rows if row["model"] == model)
            axes.set_title(f"{model}, eps {first['eps']}/255", fontsize=9)
            axes.set_yticks([-k for k in range(len(defenses))], defenses, fontsize=8)
            axes.tick_params(axis="y", length=0)
        figure.supxlabel("gain in robust accuracy over the undefended model's worst case (points)", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs=4, action="append", metavar=("NAME", "SPEC", "DATASET", "EPS"), help="repeatable; eps in 1/255"
    )
    parser.add_argument("--defense", nargs="+", default=list(DEFENSES))
    parser.add_argument("--attack", default="apgd-ce(iterations=50)+square(queries=200)")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3, help="of random defences")
    parser.add_argument("--votes", type=int, default=5)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--store", type=Path, default=Path("build/defences-store"))
    parser.add_argument("--again", action="store_true", help="begin with what the result file has")
    args = parser.parse_args()
    models = args.model or [["tiny", "tiny", "emoji-food", "4"]]
    file = RESULTS / "defences_study.json"
    rows = json.loads(file.read_text())["rows"] if args.again and file.is_file() else []
    done = {(row["model"], row["defense"], row["seed"], row["n"]): row for row in rows}

    def row_of(model: list[str], defense: str | None, seed: int) -> dict[str, Any]:
        """What is measured, unless it is."""
        key = (model[0], defense or "none", seed, args.images)
        if key not in done:
            done[key] = measure(model, defense, seed, args)
            print(json.dumps(done[key]), flush=True)
            settings = {name: getattr(args, name) for name in ("attack", "votes", "draws")}
            save("defences_study", {"rows": [*done.values()], **settings, **provenance()})
        return done[key]

    for model in models:
        row_of(model, None, 0)
        for defense in args.defense:
            seeds = args.seeds if row_of(model, defense, 0)["random"] else 1
            for seed in range(1, seeds):
                row_of(model, None, seed)
                row_of(model, defense, seed)
    rows = [*done.values()]
    (RESULTS / "defences_study.md").write_text(f"{summary(rows)}\n{table(rows)}")
    draw(rows, RESULTS / "defences_study.png")


if __name__ == "__main__":
    main()
