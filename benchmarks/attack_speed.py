"""How much faster is clipguard's engine than the reference on the same work?

`python attack_speed.py --model SPEC --dataset NAME --attack autoattack-fast --eps 1,4,8 --n 64 --name undefended`
runs both engines in turn in one process (the reference once for each eps, as its users do), at least three times, and
adds passes, seconds and their ratios to `results/attack_speed.json` under the given name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from common import RESULTS, Cell, attack, load_cell, passes, provenance, save


def timed(cell: Cell, engine: str, name: str, radii: list[float], norm: str, **options: Any) -> dict[str, Any]:
    """One run of one engine over all radii."""
    started = time.perf_counter()
    outcomes, costs = attack(cell, engine, name, radii, norm, **options)
    seconds = time.perf_counter() - started
    accuracy = [sum(o.levels[k].robust for o in outcomes.values()) / len(outcomes) for k in range(len(radii))]
    return {"seconds": round(seconds, 2), "robust_accuracy": accuracy, **passes(costs)}


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
    parser.add_argument("--modes", nargs="*", default=["ascending"], help="eps modes of clipguard to time")
    args = parser.parse_args()
    unit = 255 if args.norm == "linf" else 1
    radii = [float(e) / unit for e in args.eps.split(",")]
    cell = load_cell(args.model, args.dataset, args.n)
    work = {mode: ("clipguard", {"eps_mode": mode}) for mode in args.modes} | {"reference": ("reference", {})}
    attack(Cell(cell.name, cell.classifier, cell.examples[:8]), "clipguard", "pgd-2", radii, args.norm)  # warm-up
    runs: dict[str, list[dict[str, Any]]] = {key: [] for key in work}
    for _ in range(args.runs):
        for key, (engine, options) in work.items():
            options = {"batch_size": args.batch_size} | options
            runs[key].append(timed(cell, engine, args.attack, radii, args.norm, **options))
            print(key, runs[key][-1], flush=True)
    entry: dict[str, Any] = {"arguments": vars(args), "provenance": provenance(), "runs": runs}
    for mode in args.modes:
        ratios = [r["seconds"] / c["seconds"] for c, r in zip(runs[mode], runs["reference"], strict=True)]
        entry[f"{mode}: times faster"] = {
            "median": round(statistics.median(ratios), 2),
            "min": round(min(ratios), 2),
            "max": round(max(ratios), 2),
            "forward": round(runs["reference"][0]["forward"] / runs[mode][0]["forward"], 2),
            "backward": round(runs["reference"][0]["backward"] / max(1, runs[mode][0]["backward"]), 2),
        }
    path = RESULTS / "attack_speed.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    save("attack_speed", results | {args.name: entry})
    print(json.dumps({k: v for k, v in entry.items() if "faster" in k}, indent=1))


if __name__ == "__main__":
    main()
