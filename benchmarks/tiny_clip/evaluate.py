"""Clean accuracy of the embedded model on every whole split: `python evaluate.py > results.json`.

Through the public API, so it measures what users get. Also, for each test split, how near its images are to the
nearest training image of the same class (a copy would be at 0).
"""

from __future__ import annotations

import json
import sys

import torch

import clipguard
from clipguard.data import list_datasets
from clipguard.statistics.intervals import wilson_interval


def accuracy(name: str, split: str, templates: str) -> dict[str, float | int]:
    """Top-1 accuracy of `tiny` on a split, with its Wilson interval."""
    data = clipguard.load_dataset(name, split=split, templates=templates)
    model = clipguard.load_model("tiny")
    classifier = model.classifier(data.class_names, data.templates)
    preprocess = model.preprocess()
    x = torch.stack([preprocess(data.image(i)) for i in range(len(data))])
    with torch.no_grad():
        predicted = torch.cat([classifier(batch).argmax(dim=1) for batch in x.split(128)])
    right = int((predicted == torch.from_numpy(data.labels)).sum())
    low, high = wilson_interval(right, len(data))
    return {"n": len(data), "accuracy": right / len(data), "ci_low": low, "ci_high": high}


def nearest_training_image(name: str) -> float:
    """Smallest root mean square difference (of pixels in [0,1]) between a test and a training image of the set."""
    pixels = []
    for split in ("test", "train"):
        data = clipguard.load_dataset(name, split=split)
        preprocess = clipguard.load_model("tiny").preprocess()
        pixels.append(torch.stack([preprocess(data.image(i)) for i in range(len(data))]).flatten(1))
    return float(torch.cdist(*pixels).min() / pixels[0].shape[1] ** 0.5)


def main() -> None:
    results = {}
    for info in list_datasets():
        results[info.name] = {
            "classes": info.classes,
            "chance": 1 / info.classes,
            "test": accuracy(info.name, "test", "ensemble"),
            "test, single prompt": accuracy(info.name, "test", "single"),
            "train": accuracy(info.name, "train", "ensemble"),
            "nearest training image": round(nearest_training_image(info.name), 4),
        }
        print(info.name, results[info.name], file=sys.stderr)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
