"""How much faster is clipguard's engine than the reference on the same work?

`python attack_speed.py --name robust --model local-dir:/tmp/robust-tiny --dataset emoji-objects --attack autoattack`
runs the reference (once for each eps, as its users do) and every variant of the engine in turn, in one process, at
least three times. Passes, processor seconds, their ratios, and every image on which two of them differ go to
`results/attack_speed.json` under the given name, after every round. (Entries without `"clock": "processor"` are older:
their seconds are wall seconds.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Cell, attack, load_cell, passes, provenance, save

VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {},  # ascending eps
    "independent": {"eps_mode": "independent"},  # without carrying outcomes to larger eps
    "nested": {"eps_mode": "nested"},
    "compiled": {"compile": True},
    "compiled nested": {"compile": True, "eps_mode": "nested"},
    "bfloat16": {"precision": "bfloat16"},
}


def timed(cell: Cell, engine: str, name: str, radii: list[float], norm: str, **options: Any) -> dict[str, Any]:
    """One run of one engine over all radii: seconds, passes, and which images are robust at which radius."""
    started = time.process_time()
    outcomes, costs = attack(cell, engine, name, radii, norm, **options)
    seconds = time.process_time() - started
    robust = [[i for i, o in sorted(outcomes.items()) if o.eps_outcomes[k].robust] for k in range(len(radii))]
    return {"seconds": round(seconds, 2), **passes(costs), "robust": robust}


def summary(runs: dict[str, list[dict[str, Any]]], variant: str) -> dict[str, Any]:
    """How a variant compares with the reference, and on which images it differs from it and from exact mode."""
    own = runs[variant]
    ratios = [r["seconds"] / c["seconds"] for c, r in zip(own, runs["reference"], strict=True)]
    to_exact = [e["seconds"] / c["seconds"] for c, e in zip(own, runs["exact"], strict=True)]
    return {
        "times faster than the reference": spread(ratios),
        "times faster than exact": spread(to_exact),
        "times fewer forward passes": round(runs["reference"][0]["forward"] / own[0]["forward"], 2),
        "times fewer backward passes": round(runs["reference"][0]["backward"] / max(1, own[0]["backward"]), 2),
        "robust here, broken by the reference": less(own, runs["reference"]),
        "broken here, robust to the reference": less(runs["reference"], own),
        "robust here, broken in exact mode": less(own, runs["exact"]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def less(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[list[int]]:
    """For every radius, the images that are robust in the first run of `a` and not in that of `b`."""
    return [sorted(set(x) - set(y)) for x, y in zip(a[0]["robust"], b[0]["robust"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="key of the entry in the result file")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dataset", default="emoji-objects")
    parser.add_argument("--attack", default="autoattack-fast")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="1,4,8")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=["exact", "nested"], choices=list(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    unit = 255 if args.norm == "linf" else 1
    radii = [float(e) / unit for e in args.eps.split(",")]
    cell = load_cell(args.model, args.dataset, args.n)
    work: dict[str, tuple[str, dict[str, Any]]] = {"reference": ("reference", {})}
    work |= {variant: ("clipguard", VARIANTS[variant]) for variant in dict.fromkeys(["exact", *args.variants])}
    warm_up = Cell(cell.name, cell.classifier, cell.examples[:8], cell.model)
    for _, options in list(work.values())[1:]:  # also compiles, and pays for that before the clock runs
        attack(warm_up, "clipguard", "pgd-3", radii, args.norm, **options)
        attack(warm_up, "clipguard", "square(queries=3)", radii, args.norm, **options)
    runs: dict[str, list[dict[str, Any]]] = {key: [] for key in work}
    path = RESULTS / "attack_speed.json"
    for _ in range(args.runs):
        for key, (engine, options) in work.items():
            options = {"batch_size": args.batch_size} | options
            runs[key].append(timed(cell, engine, args.attack, radii, args.norm, **options))
            print(key, {k: v for k, v in runs[key][-1].items() if k != "robust"}, flush=True)
        entry = {
            "model": cell.model,
            "dataset": Path(args.dataset).name,
            "n": len(cell.examples),
            **{k: getattr(args, k) for k in ("attack", "norm", "eps", "batch_size")},
            "clock": "processor",
            "provenance": provenance(),
            "summary": {key: summary(runs, key) for key in work if key != "reference"},
            "runs": runs,
        }
        results = json.loads(path.read_text()) if path.exists() else {}
        save("attack_speed", results | {args.name: entry})
    print(json.dumps(entry["summary"], indent=1))


if __name__ == "__main__":
    main()
