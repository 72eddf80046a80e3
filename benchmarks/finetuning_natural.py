"""Does fine-tuning make a model of photos robust, too, or only the embedded one?

    python finetuning_natural.py --work DIR --model local-dir:CLIP --train train.parquet --test test.parquet

fine-tunes a checkpoint at eps 1/255 with every method at each of `LEARNING_RATES`. What did best, by the mean of clean
and PGD-10 accuracy on validation images, which are of the training data (the lowest rate among equals), is evaluated on
test images, clean and under APGD, with the one prompt of training; and clean with the ensemble of prompts that `bench`
takes by default. One seed: it shows that the methods work on another tower and on photos, not which is best. Every run
goes to `results/finetuning_natural/` as soon as it is done and none is made twice; `results/finetuning_natural.md` is
the table of all that are there. Processes may share the work by method: `--methods tima` beside `--methods fare`.
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
from clipguard.core.environment.device import choose_device

METHODS = ("none", "clean", "tecoa", "fare", "pmg-aft", "tima")
LEARNING_RATES = (2e-4, 5e-4, 1e-3)
SETTINGS: dict[str, Any] = {"eps": 1.0, "attack_steps": 2, "steps": 200, "batch_size": 32, "eval_samples": 100}
EVALUATED, N = ("0.5", "1"), 200
ATTACK = "apgd-ce(iterations=20)+apgd-t(iterations=20,targets=3)"
FOLDER = RESULTS / "finetuning_natural"
Record = dict[str, Any]


class Study:
    """Runs by name, each made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.work, self.model, self.train, self.test = args.work, args.model, args.train, args.test

    def tuned(self, method: str, lr: float) -> Record:
        """Fine-tune, unless it was done."""
        name = f"{method}-{lr:g}"
        path, folder = FOLDER / f"{name}.json", self.work / name
        if path.exists():
            return dict(json.loads(path.read_text()))
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        settings = {**SETTINGS, "lr": lr}
        if method == "clean":  # which has no training attack
            del settings["attack_steps"]
        run = clipguard.finetune(
            method, out=folder, model=self.model, dataset=self.train, templates="single", **settings
        ).run
        scores = run["evaluation"]["scores"]["fine-tuned"]
        record = {"method": method, "settings": settings, "weights": run["sha256"]}
        record |= {"training_seconds": run["training_seconds"], "precision": run["resolved"]["precision"]}
        record["validation"] = {score: scores[score]["accuracy"] for score in ("clean", "robust")}
        self.keep(name, record)
        return record

    def evaluated(self, name: str, record: Record) -> None:
        """Evaluate a model, unless it was done."""
        if "accuracy" in record:
            return
        spec = self.model if name == "none" else f"local-dir:{self.work / name}"
        where: dict[str, Any] = {"models": [spec], "datasets": [self.test], "n_samples": N}
        cells = clipguard.bench(eps=[",".join(EVALUATED)], attacks=[ATTACK], templates="single", **where).cells
        record["accuracy"] = {f"{cell.eps or 0:g}": cell.accuracy for cell in cells}
        (other,) = clipguard.bench(attacks=["none"], templates="ensemble", **where).cells
        record["clean with other prompts"] = other.accuracy
        self.keep(name, record)
        print(name, record["accuracy"], flush=True)

    def keep(self, name: str, record: Record) -> None:
        """Write a run's record, with where it comes from."""
        device = torch.cuda.get_device_name() if choose_device("auto") == "cuda" else "cpu"
        loaded = clipguard.load_model(self.model).info
        about = {"architecture": Path(loaded.architecture).name, "sha256": loaded.sha256}
        data = {
            "train": Path(self.train).name,
            "test": Path(self.test).name,
            "n": N,
            "attack": ATTACK,
        }
        origin = {"model": about, **data, "provenance": provenance() | {"device": device}}
        save(f"{FOLDER.name}/{name}", record | origin)


def validated(record: Record) -> float:
    """Clean plus robust accuracy on validation images."""
    return sum(record.get("validation", {}).values())


def table() -> str:
    """Markdown: accuracy in %."""
    records = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    columns = ["", "learning rate", "clean", *(f"eps {eps}/255" for eps in EVALUATED), "clean, other prompts"]
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    for method in METHODS:
        done = [r for r in records if r["method"] == method and "accuracy" in r]
        for run in sorted(done, key=validated)[-1:]:
            values = [*(run["accuracy"][eps] for eps in ("0", *EVALUATED)), run["clean with other prompts"]]
            rate = f"{run['settings']['lr']:g}" if "settings" in run else ""
            lines.append(f"| `{method}` | {rate} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True, help="labelled images, as --dataset takes them")
    parser.add_argument("--test", required=True)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(args)
    for method in args.methods:
        if method == "none":
            path = FOLDER / "none.json"
            study.evaluated("none", json.loads(path.read_text()) if path.exists() else {"method": "none"})
            continue
        tried = {lr: study.tuned(method, lr) for lr in LEARNING_RATES}
        best = max(tried, key=lambda lr: validated(tried[lr]))
        study.evaluated(f"{method}-{best:g}", tried[best])
    (RESULTS / "finetuning_natural.md").write_text(table())


if __name__ == "__main__":
    main()
