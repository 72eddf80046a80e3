"""Does fine-tuning make a model of natural images robust, or only the embedded one?

    python finetuning_natural.py --work DIR --model local-dir:CLIP --train train.parquet --test test.parquet

fine-tunes a checkpoint with each method at eps 1/255, then measures clean accuracy and robustness under APGD on test
images, and writes `results/finetuning_natural.json` after every method; one that is there already is not run again.
One seed, a few hundred steps, one learning rate for all and nothing tuned: it shows that the methods work on another
tower and on photos, not which is best.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, provenance, save

import clipguard

METHODS = ("none", "tecoa", "fare", "pmg-aft", "tima")
SETTINGS: dict[str, Any] = {"eps": 1.0, "attack_steps": 2, "batch_size": 32, "lr": 2e-4, "eval_samples": 100}
EVALUATED, N = "0.25,0.5,1", 200
ATTACK = "apgd-ce(iterations=30)+apgd-t(iterations=30,targets=3)"


def run(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune with one method, and evaluate."""
    record: dict[str, Any] = {"method": method, "attack": ATTACK, "n": N, "provenance": provenance()}
    spec = args.model
    if method != "none":
        folder = args.work / method
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        settings = {**SETTINGS, "steps": args.steps}
        record["settings"] = settings
        done = clipguard.finetune(method, out=folder, model=args.model, dataset=args.train, **settings)
        record |= {"training_seconds": done.run["training_seconds"], "weights": done.run["sha256"]}
        spec = f"local-dir:{folder}"
    cells = clipguard.bench([spec], [args.test], [EVALUATED], [ATTACK], n_samples=N).cells
    record["cells"] = [
        {"eps": c.eps, "accuracy": c.accuracy, "low": round(c.ci_low, 4), "high": round(c.ci_high, 4)} for c in cells
    ]
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True, help="labelled images, as --dataset takes them")
    parser.add_argument("--test", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    info = clipguard.load_model(args.model).info
    path = RESULTS / "finetuning_natural.json"
    for method in args.methods:
        runs = json.loads(path.read_text())["runs"] if path.exists() else {}
        if method in runs:
            continue
        runs[method] = run(method, args)
        data = {"train": Path(args.train).name, "test": Path(args.test).name}
        base = {"architecture": Path(info.architecture).name, "sha256": info.sha256, "image_size": info.image_size}
        save("finetuning_natural", {"model": base, "data": data, "runs": runs})
        print(method, runs[method]["cells"], flush=True)


if __name__ == "__main__":
    main()
