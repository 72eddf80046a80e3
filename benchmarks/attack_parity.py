"""Is clipguard's engine as strong as the reference, image by image?

`python attack_parity.py --robust local-dir:/tmp/robust-tiny` compares every attack and the suite with `pyautoattack` on
the embedded model and on an adversarially trained copy of it (see robust_tiny.py), linf and l2, and writes
`results/attack_parity.json` after every comparison; one that is there already is not run again. `--only` names the
attacks of this process, so that several can share the work. Its seconds are those of a machine that may do other
things, too: attack_speed.py measures speed.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from common import RESULTS, Cell, attack, load_cell, passes, provenance, save

from clipguard.data import list_datasets

# Radii where a good part of the images survives: {model: {norm: eps}}, pixel units.
EPS = {"tiny": {"linf": 4 / 255, "l2": 0.8}, "robust": {"linf": 10 / 255, "l2": 2.0}}
SQUARE_EPS = {"tiny": {"linf": 7 / 255, "l2": 1.6}, "robust": {"linf": 16 / 255, "l2": 3.5}}  # it is weaker alone
COMPARISONS = {"apgd-ce": 520, "apgd-dlr": 520, "apgd-t": 520, "fab-t": 200, "square": 200, "autoattack": 200}


def compare(cells: list[Cell], name: str, norm: str, eps: float) -> dict[str, Any]:
    """Both engines on the same images: accuracies, every disagreement, passes and seconds."""
    robust: dict[str, dict[tuple[str, int], bool]] = {}
    record: dict[str, Any] = {"attack": name, "norm": norm, "eps": eps}
    for engine in ("clipguard", "reference"):
        started, robust[engine], totals = time.perf_counter(), {}, []
        for cell in cells:
            outcomes, costs = attack(cell, engine, name, [eps], norm)
            robust[engine] |= {(cell.name, i): o.eps_outcomes[0].robust for i, o in outcomes.items()}
            totals.append(passes(costs))
        record[engine] = {
            "robust_accuracy": sum(robust[engine].values()) / len(robust[engine]),
            "seconds": round(time.perf_counter() - started, 1),
            "forward": sum(t["forward"] for t in totals),
            "backward": sum(t["backward"] for t in totals),
        }
    differ = [(image, ours) for image, ours in robust["clipguard"].items() if ours != robust["reference"][image]]
    record["n"] = len(robust["clipguard"])
    record["points_above_reference"] = round(
        100 * (record["clipguard"]["robust_accuracy"] - record["reference"]["robust_accuracy"]), 3
    )
    record["broken_only_by_reference"] = [list(image) for image, ours in differ if ours]
    record["broken_only_by_clipguard"] = [list(image) for image, ours in differ if not ours]
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robust", required=True, help="a robust copy of tiny, as --model takes it")
    parser.add_argument("--only", nargs="*", default=list(COMPARISONS), help="attacks to compare")
    args = parser.parse_args()
    path = RESULTS / "attack_parity.json"

    def read() -> list[dict[str, Any]]:
        return json.loads(path.read_text())["comparisons"] if path.exists() else []

    done = {(c["model"], c["attack"], c["norm"]) for c in read()}
    names = [d.name for d in list_datasets()]
    for name in args.only:
        eps = SQUARE_EPS if name == "square" else EPS
        for model, spec in (("robust", args.robust), ("tiny", "tiny")):
            for norm in ("linf", "l2"):
                if (model, name, norm) in done:
                    continue
                cells = [load_cell(spec, dataset, COMPARISONS[name] // len(names)) for dataset in names]
                record = {"model": model} | compare(cells, name, norm, eps[model][norm])
                # Read again: other attacks may be compared at the same time.
                save("attack_parity", {"comparisons": [*read(), record], "provenance": provenance()})
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
