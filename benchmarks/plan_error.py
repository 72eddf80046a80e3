"""How far is `clipguard plan` from the run that it plans, in passes and in seconds?

`python plan_error.py --model tiny --eps 1,4 --model local-dir:build/robust-tiny --eps 4,12` plans and then runs cheap
attacks for ten seeds, each on one of the embedded sets in turn and without a store, and writes
`results/plan_error.json`; with `--defense`, of defended models, `results/plan_error_defended.json`. Seconds are
processor seconds of one thread, in the plan and in the run: other work on the machine adds less to them.
`robust_tiny.py` makes the second model, some of whose images survive.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from common import provenance, save

from clipguard.benchmark.planning.planner import plan_run
from clipguard.benchmark.planning.question import Question
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.runner import run_plan
from clipguard.data.registry import expand_groups

FACTOR = 1.5  # that an estimate should be within


def measure(model: str, eps: str, attack: str, seed: int, n_samples: int, defense: dict[str, Any]) -> dict[str, Any]:
    """One plan and its run; `defense` has the settings of a defence, or none."""
    datasets = expand_groups(["embedded"])
    dataset = datasets[seed % len(datasets)]
    settings = {"attacks": attack, "eps": eps, "n_samples": n_samples, "seed": seed, "device": "cpu", "decoders": 0}
    plan = make_plan(model, dataset, **settings, **defense)
    estimate = plan_run(plan, Question())
    run = run_plan(plan).run
    passes = sum(cost["forward"] for entry in run["costs"] for cost in entry["stages"].values())
    planned = estimate.passes
    assert planned.expected is not None
    assert estimate.seconds.expected is not None
    return {
        "model": Path(model).name,
        "eps": eps,
        "attack": attack,
        **defense,
        "seed": seed,
        "dataset": dataset,
        "images": estimate.images,
        "passes": {"planned": round(planned.expected), "run": passes, "bounds": [planned.least, planned.most]},
        "seconds": {"planned": round(estimate.seconds.expected, 2), "run": run["wall_seconds"]},
        "ratio": {
            "passes": round(planned.expected / passes, 3),
            "seconds": round(estimate.seconds.expected / run["wall_seconds"], 3),
        },
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By model, with its defence, and attack: the range of both ratios, and how many seeds are within the factor."""
    summary = []
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("model", "attack", "defense") if name in row), []).append(row)
    for key, group in groups.items():
        entry: dict[str, Any] = {**dict(zip(("model", "attack", "defense"), key, strict=False)), "seeds": len(group)}
        for name in ("passes", "seconds"):
            ratios = sorted(row["ratio"][name] for row in group)
            within = sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios)
            entry[name] = {"least": ratios[0], "median": ratios[len(ratios) // 2], "most": ratios[-1], "within": within}
        bounds = [row["passes"]["bounds"][0] <= row["passes"]["run"] <= row["passes"]["bounds"][1] for row in group]
        summary.append(entry | {"inside_bounds": sum(bounds)})
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="repeatable; tiny")
    parser.add_argument("--eps", action="append", help="of each model; 1,4")
    parser.add_argument("--attack", action="append", help="repeatable; pgd-10 and apgd-ce(iterations=20)")
    parser.add_argument("--defense", action="append", help="repeatable; none")
    parser.add_argument("--votes", type=int, default=5)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--n-samples", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    time.perf_counter = time.monotonic = time.process_time
    rows = []
    for seed in range(args.seeds):
        for model, eps in zip(args.model or ["tiny"], args.eps or ["1,4"], strict=True):
            for attack in args.attack or ["pgd-10", "apgd-ce(iterations=20)"]:
                for defense in args.defense or [None]:
                    given = {"defense": defense, "votes": args.votes, "draws": args.draws} if defense else {}
                    rows.append(measure(model, eps, attack, seed, args.n_samples, given))
                    print(rows[-1], flush=True)
        name = "plan_error_defended" if args.defense else "plan_error"
        save(name, {"provenance": provenance(), "factor": FACTOR, "summary": summarise(rows), "results": rows})


if __name__ == "__main__":
    main()
