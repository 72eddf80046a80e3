"""How many passes and seconds does it save that PGD ends where it comes back to a point, and are outcomes the same?

`python pgd_cycles.py --model tiny --model /tmp/robust-tiny` runs the attacks of the protocols `tecoa`, `tga` and `ttc`,
and PGD-100 at other step sizes, with their whole budget and with cycles cut, on the embedded images, and writes
`results/pgd_cycles.json`. `robust_tiny.py` makes the second model; `--model DIR --dataset NAME` takes others.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from common import Cell, attack, load_cell, provenance, save

ATTACKS = {  # and whose they are
    "pgd-10(step_size=1)": "tecoa, ttc",
    "pgd-20(step_size=1)": "tecoa",
    "pgd-100(step_size=1)": "tecoa, tga",
    "pgd-100(step_size=0.25)": "",
    "pgd-100": "",
}


def measure(cell: Cell, name: str, eps: float) -> dict[str, Any]:
    """Passes and CPU seconds of one attack without and with the cut.

    Raises:
        SystemExit: if an image has another outcome.
    """
    runs = []
    for stop in (False, True):
        started = time.process_time()
        outcomes, costs = attack(cell, "clipguard", name, [eps / 255], "linf", stop_cycles=stop)
        cost = costs[name.partition("(")[0]]
        runs.append((outcomes, cost.forward, time.process_time() - started, cost.skipped))
    (whole, full, full_seconds, _), (cut_outcomes, cut, cut_seconds, skipped) = runs
    if whole != cut_outcomes or full - cut != skipped:
        raise SystemExit(f"{cell.name}, {name}: outcomes or counts differ")
    robust = sum(o.eps_outcomes[0].robust for o in whole.values())
    return {
        "attack": name,
        "eps": eps,
        "robust": robust,
        "passes": [full, cut],
        "times fewer": round(full / cut, 2),
        "cpu_seconds": [round(full_seconds, 2), round(cut_seconds, 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="repeatable; tiny")
    parser.add_argument("--dataset", default="emoji-food")
    parser.add_argument("--n-samples", type=int, default=64)
    parser.add_argument("--eps", type=float, action="append", help="in units of 1/255, repeatable; 1")
    args = parser.parse_args()
    results = []
    for model in args.model or ["tiny"]:
        cell = load_cell(model, args.dataset, args.n_samples)
        for eps in args.eps or [1.0]:
            for name, protocols in ATTACKS.items():
                row = {"model": cell.model, "dataset": cell.name, "images": len(cell.examples), "protocols": protocols}
                results.append(row | measure(cell, name, eps))
                print(results[-1], flush=True)
    save("pgd_cycles", {"provenance": provenance(), "results": results})


if __name__ == "__main__":
    main()
