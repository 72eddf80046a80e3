"""Fine-tuning methods compared: the literature's protocol in miniature, on the embedded model.

`python finetuning_study.py --work DIR --stage tune`, then the other stages in the order below. Fine-tunes on one
set's train split, evaluates zero-shot on every set's test split (art styles never trained on, and for all sets but one,
classes never trained on). Every run is kept under DIR and in `results/finetuning_study/`, and none is made twice, so
an interrupted study goes on. Two processes may share the work: `--part 0/2` and `--part 1/2`.

- tune: for every method the learning rates of `LEARNING_RATES`, one seed, eps 4; the best by the mean of clean and
  robust accuracy (PGD-10, mean over eps 1, 4 and 8) on validation images, which are of the training split; the lowest
  among equals. The same effort for each.
- train: the chosen rates, three seeds at eps 4, and at eps 1 and 8 for TIMA and the best baseline.
- rate: the methods that chose another learning rate than TIMA, at TIMA's, at eps 4, the first seed: is it the rate?
- ablate: TIMA without each term, other margins and other texts, at eps 8, the first seed.
- confirm: the first seed's TIMA and best baseline, and the model as it came, under the complete autoattack-fast; with
  the diagnostics of TIMA's papers (margins at small and large eps, margins and the similarity of texts).

`finetuning_table.py` makes the table and the plot.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, provenance

import clipguard
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.data import list_datasets
from clipguard.finetuning.diagnostics import (
    margin_offset,
    margin_similarity_correlation,
    mean_margins,
    text_diagnostics,
)
from clipguard.finetuning.training.training_attack import TrainingAttack

TRAINED_ON = "emoji-objects"
METHODS = ("clean", "tecoa", "fare", "pmg-aft", "tima")
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3)
STEPS, BATCH, ATTACK_STEPS = 200, 64, 3
EPS, SEEDS = 4, (0, 1, 2)
EVALUATED = ("1", "4", "8")  # units of 1/255
N, N_CONFIRM = 100, 50  # test images of each set
ATTACK = {"name": "apgd-30", "stages": ["apgd-ce(iterations=30)", "apgd-t(iterations=30,targets=3)"]}
ABLATIONS = {
    "no mhe": "tima(lam_mhe=0)",
    "no iakd": "tima(lam_iakd=0)",
    "no takd": "tima(lam_takd=0)",
    "no margin": "tima(margin_mode=none)",
    "similarity margin": "tima(margin_mode=similarity)",
    "constant margin": "tima(margin_mode=constant)",
    "margin 0.05": "tima(margin=0.05)",
    "margin 0.1": "tima(margin=0.1)",
    "frozen text": "tima(text=frozen)",
    "laat text": "tima(text=laat)",
    "encoder text": "tima(text=encoder,text_lr=0.0001)",
    "kd temperature 4": "tima(kd_temperature=4)",
    "kd scale 100": "tima(kd_scale=100)",
    "feature takd": "tima(takd_kind=feature)",
    "iat first": "tima(schedule=iat_first)",
}


@dataclass(frozen=True)
class Unit:
    """One fine-tuning run and its evaluation; "none" is the model as it came."""

    stage: str
    method: str
    lr: float
    eps: int
    seed: int

    @property
    def key(self) -> str:
        """A name for files, from everything that defines the run."""
        return hashlib.sha256(json.dumps([asdict(self), STEPS, BATCH, ATTACK_STEPS]).encode()).hexdigest()[:16]

    @property
    def trained(self) -> Unit:
        """The unit whose fine-tuning this one evaluates."""
        return replace(self, stage="train") if self.stage == "confirm" else self


def units(stage: str, records: list[dict[str, Any]]) -> Iterator[Unit]:
    """What a stage consists of; later stages need the records of earlier ones."""
    if stage == "tune":
        for method in METHODS:
            for lr in LEARNING_RATES:
                yield Unit("tune", method, lr, EPS, SEEDS[0])
        return
    rates = {method: best_rate(method, records) for method in METHODS}
    if stage == "train":
        yield Unit("train", "none", 0.0, 0, 0)
        for method in METHODS:
            for seed in SEEDS:
                yield Unit("train", method, rates[method], EPS, seed)
        for method in ("tima", best_baseline(records)):
            for eps in (1, 8):
                for seed in SEEDS:
                    yield Unit("train", method, rates[method], eps, seed)
        return
    if stage == "rate":
        for method in METHODS:
            if rates[method] != rates["tima"]:
                yield Unit("rate", method, rates["tima"], EPS, SEEDS[0])
        return
    if stage == "ablate":
        for method in ABLATIONS.values():
            yield Unit("ablate", method, rates["tima"], 8, SEEDS[0])
        return
    yield Unit("confirm", "none", 0.0, 0, 0)
    for method in ("tima", best_baseline(records)):
        for eps in (EPS, 8):
            yield Unit("confirm", method, rates[method], eps, SEEDS[0])


def best_rate(method: str, records: list[dict[str, Any]]) -> float:
    """The learning rate that did best on validation images."""
    tried = [r for r in records if r["stage"] == "tune" and r["method"] == method]
    if len(tried) < len(LEARNING_RATES):
        raise SystemExit(f"{method}: run --stage tune to the end first")
    return max(tried, key=lambda r: (round(r["validation"]["mean"], 9), -r["lr"]))["lr"]


def best_baseline(records: list[dict[str, Any]]) -> str:
    """The method other than TIMA that did best on validation images."""
    tried = [r for r in records if r["stage"] == "tune" and r["method"] != "tima"]
    return max(tried, key=lambda r: (round(r["validation"]["mean"], 9), -METHODS.index(r["method"])))["method"]


def run(unit: Unit, work: Path) -> dict[str, Any]:
    """Fine-tune, and evaluate: on validation images when tuning, on all test splits else."""
    record: dict[str, Any] = asdict(unit) | {"provenance": provenance()}
    spec, folder = "tiny", work / unit.trained.key
    if unit.method != "none" and not (unit.stage == "confirm" and (folder / "open_clip_config.json").exists()):
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        settings = {"dataset": TRAINED_ON, "steps": STEPS, "batch_size": BATCH}
        if unit.method != "clean":  # which has no training attack
            settings["attack_steps"] = ATTACK_STEPS
        settings |= {"lr": unit.lr, "eps": float(unit.eps), "seed": unit.seed, "eval_samples": 100}
        settings |= {"templates": "single"}  # the default when these results were made
        done = clipguard.finetune(unit.method, out=folder, **settings).run
        record |= {"training_seconds": done["training_seconds"], "weights": done["sha256"]}
    if unit.method != "none":
        spec = f"local-dir:{folder}"
    if unit.stage == "tune":
        return record | {"validation": validate(spec, folder, unit.seed)}
    recipe, n = work / "apgd-30.yaml", N
    recipe.write_text(json.dumps(ATTACK))  # JSON is YAML
    names = [d.name for d in list_datasets()]
    attack = str(recipe)
    if unit.stage == "confirm":
        attack, n = "autoattack-fast", N_CONFIRM
        record["margins"] = {name: margins(spec, name) for name in names}
    frame = clipguard.bench([spec], names, [",".join(EVALUATED)], [attack], n_samples=n).samples
    record["accuracy"] = {
        name: {
            f"{eps:g}": float(group["robust"].mean())
            for eps, group in frame[frame["dataset"] == name].groupby("eps", sort=True)
        }
        for name in names
    }
    record["robust_images"] = {
        f"{eps:g}": [f"{d}/{i}" for d, i, ok in zip(g["dataset"], g["index"], g["robust"], strict=True) if ok]
        for eps, g in frame.groupby("eps", sort=True)
    }
    if unit.method.startswith("tima"):
        record["texts"] = {name: text_side(spec, name) for name in names}
    return record


def validate(spec: str, folder: Path, seed: int) -> dict[str, float]:
    """Clean and PGD-10 accuracy on the run's own validation images."""
    chosen = json.loads((folder / "run.json").read_text())["dataset"]["validation_indices"]
    data, model = clipguard.load_dataset(TRAINED_ON, split="train"), clipguard.load_model(spec)
    preprocess = model.preprocess()
    examples = [Example(i, preprocess(data.image(i)), int(data.labels[i])) for i in chosen]
    classifier = model.classifier(data.class_names, data.templates)
    budgets = [int(eps) / 255 for eps in EVALUATED]
    engine = Engine(classifier, parse_recipe("pgd-10"), ThreatModel("linf"), budgets, EngineOptions(seed=seed))
    outcomes = list(engine.run(examples))
    n = len(outcomes)
    clean = sum(o.clean_prediction == o.label for o in outcomes) / n
    robust = {eps: sum(o.eps_outcomes[i].robust for o in outcomes) / n for i, eps in enumerate(EVALUATED)}
    return {"n": n, "clean": clean, **robust, "mean": (clean + sum(robust.values()) / len(robust)) / 2}


def margins(spec: str, name: str) -> dict[str, Any]:
    """Logit margins under PGD-10 at small and large eps, the offset between them, and their relation to the texts."""
    data, model = clipguard.load_dataset(name), clipguard.load_model(spec)
    classifier, preprocess = model.classifier(data.class_names, data.templates), model.preprocess()
    indices = data.subset(N, 0).tolist()
    x = torch.stack([preprocess(data.image(i)) for i in indices])
    labels = torch.tensor([int(data.labels[i]) for i in indices])
    logits = {0.0: classifier(x)}
    for eps in (1, 2, 4, 8, 16):
        attack = TrainingAttack(ThreatModel("linf"), eps / 255, 10, eps / 255 / 4, random_start=True)
        loss = partial(cross_entropy_of, classifier, labels)
        logits[float(eps)] = classifier(attack(loss, x, indices)[0])
    return {
        "mean": mean_margins(logits, labels),
        "offset from 1 to 8": margin_offset(logits[1.0], logits[8.0], labels),
        "correlation with text cosine": margin_similarity_correlation(logits[0.0], labels, classifier.text.T),
    }


def cross_entropy_of(classifier: torch.nn.Module, labels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(B,) what PGD maximises."""
    return torch.nn.functional.cross_entropy(classifier(x), labels, reduction="none")


def text_side(spec: str, name: str) -> dict[str, float]:
    """How the tuned texts of a set's classes lie, compared with the original ones."""
    data = clipguard.load_dataset(name)
    tuned, original = (
        clipguard.load_model(s).text_features(data.class_names, data.templates).T for s in (spec, "tiny")
    )
    return text_diagnostics(tuned, original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--stage", choices=["tune", "train", "rate", "ablate", "confirm"], required=True)
    parser.add_argument("--part", default="0/1", help="K/N: this process does every N-th run, from the K-th")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    folder = RESULTS / "finetuning_study"
    folder.mkdir(parents=True, exist_ok=True)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for number, unit in enumerate(units(args.stage, records)):
        path = folder / f"{unit.key}.json"
        if number % parts != part or path.exists():
            continue
        record = run(unit, args.work)
        part_path = path.with_suffix(".part")
        part_path.write_text(json.dumps(record, indent=1) + "\n")
        part_path.replace(path)
        print(json.dumps({k: v for k, v in record.items() if k not in ("provenance", "robust_images")}), flush=True)


if __name__ == "__main__":
    main()
