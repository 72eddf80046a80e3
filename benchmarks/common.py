"""What the studies share: cells of real models and images, and result files that say where they come from."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn
from torch.nn import functional as F

import clipguard
from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.engine.reference import ReferenceEngine
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.records.provenance import versions
from clipguard.models.classifier import ZeroShotClassifier
from clipguard.models.preprocessing import Preprocessing

RESULTS = Path(__file__).parent / "results"
ENGINES = {"clipguard": Engine, "reference": ReferenceEngine}


@dataclass
class Cell:
    """A classifier and the images it is attacked on."""

    name: str
    classifier: nn.Module
    examples: list[Example]
    model: str = ""  # architecture and hash of the weights


def load_cell(model: str, dataset: str, n: int | None, seed: int = 0) -> Cell:
    """The images `clipguard bench` would take, in memory."""
    data = clipguard.load_dataset(dataset)
    loaded = clipguard.load_model(model)
    preprocess = loaded.preprocess()
    examples = [Example(i, preprocess(data.image(i)), int(data.labels[i])) for i in data.subset(n, seed).tolist()]
    what = f"{Path(loaded.info.architecture).name}, sha256 {loaded.info.sha256[:16]}"
    return Cell(dataset, loaded.classifier(data.class_names, data.templates), examples, what)


def untrained(architecture: str, classes: int = 20) -> tuple[ZeroShotClassifier, int]:
    """A classifier of an open_clip architecture with random weights and class vectors, and the side of its images.

    Norm and logits of a trained model matter to an attack's success, not to what its passes cost.
    """
    torch.manual_seed(0)
    with quiet_libraries():
        model = open_clip.create_model(architecture)
    size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    text = F.normalize(torch.randn(model.text_projection.shape[1], classes), dim=0)
    preprocessing = Preprocessing((size, size), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return ZeroShotClassifier(model, text, preprocessing, "model"), size


def attack(
    cell: Cell, engine: str, attack: str, radii: list[float], norm: str, **options: Any
) -> tuple[dict[int, ImageOutcome], dict[str, Cost]]:
    """Outcomes by index, and costs, of one engine on a cell."""
    options = {"batch_size": 64} | options
    runner = ENGINES[engine](cell.classifier, parse_recipe(attack), ThreatModel(norm), radii, EngineOptions(**options))
    return {o.index: o for o in runner.run(cell.examples)}, dict(runner.costs)


def passes(costs: dict[str, Cost]) -> dict[str, Any]:
    """Totals of a run, and for each attack its forward and backward passes, in images, and its seconds."""
    return {
        "forward": sum(c.forward for c in costs.values()),
        "backward": sum(c.backward for c in costs.values()),
        "by_attack": {name: [c.forward, c.backward, round(c.seconds, 2)] for name, c in costs.items()},
    }


def provenance() -> dict[str, Any]:
    """Versions, machine and time, for a result file."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": versions(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def save(name: str, content: Any) -> None:
    """Write `results/<name>.json`, complete or not at all."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
