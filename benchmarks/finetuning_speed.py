"""What does a fine-tuning step cost beyond its passes, and beside the way published scripts do it?

`python finetuning_speed.py` times, in turn in one process and at least three times, steps of adversarial fine-tuning
(TeCoA: three attack steps, then one update of the image tower) on 200 classes of random images:

- ours: `clipguard.finetune`, all that a step does (data, attack, loss, optimiser, numbers);
- floor: the same forward and backward passes of the same image tower, bare, in the memory format that clipguard uses:
  three for the pixels' gradient with frozen weights, one for the weights';
- published: as in the scripts of TeCoA's lineage, the text of all classes is encoded in every pass, with gradients, and
  the attack's backward passes reach all weights; in PyTorch's default memory format, as they run.

Writes `results/finetuning_speed_MODEL.json`. `--model ARCH` times an untrained open_clip model of that architecture.
Where there is CUDA, all three run there, under the same bfloat16 autocast, and the file is named for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from common import provenance, save
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import clipguard
from clipguard.core.environment.device import choose_device
from clipguard.models.classifier import fast_memory_format

CLASSES, ATTACK_STEPS = 200, 3
EPS, STEP = 4 / 255, 4 / 255 / ATTACK_STEPS * 2.5
TEMPLATE = "This is a photo of a {}"


def write_images(folder: Path, size: int) -> None:
    """One random image for each of 200 classes."""
    rng = np.random.default_rng(0)
    for i in range(CLASSES):
        (folder / f"thing number {i}").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"thing number {i}/0.png")


def untrained(architecture: str, folder: Path) -> str:
    """An open_clip folder with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def ours(spec: str, data: Path, out: Path, steps: int, batch_size: int) -> float:
    """Seconds a step of a real run."""
    settings: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "attack_steps": ATTACK_STEPS, "eps": 4.0}
    settings |= {"model": spec, "dataset": str(data), "templates": TEMPLATE, "val_fraction": 0.0, "lr": 1e-5}
    settings |= {"save_every": steps}
    done = clipguard.finetune("tecoa", out=out, preset="none", **settings)
    seconds: float = done.run["training_seconds"]
    return seconds / steps


class Bare:
    """The same passes by hand."""

    def __init__(self, spec: str, data: Path, batch_size: int) -> None:
        self.device = choose_device("auto")
        self.loaded = clipguard.load_model(spec, device=self.device)
        dataset, preprocess = clipguard.load_dataset(str(data), split="all"), self.loaded.preprocess()
        self.x = torch.stack([preprocess(dataset.image(i % CLASSES)) for i in range(batch_size)]).to(self.device)
        self.y = torch.from_numpy(dataset.labels[np.arange(batch_size) % CLASSES]).to(self.device)
        self.text = self.loaded.text_features(dataset.class_names, [TEMPLATE])
        self.tokens = self.loaded.tokenizer([TEMPLATE.format(name) for name in dataset.class_names]).to(self.device)
        p = self.loaded.preprocessing
        self.mean, self.std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (p.mean, p.std))
        self.memory_format = torch.contiguous_format

    def seconds(self, step: Callable[[], None], steps: int) -> float:
        """What a step takes, on average."""
        self.wait()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        self.wait()
        return (time.perf_counter() - started) / steps

    def wait(self) -> None:
        """Until the GPU has done what it was told, where there is one."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def use(self, memory_format: torch.memory_format) -> None:
        """Lay out weights and pixels so from now on."""
        self.memory_format = memory_format
        self.loaded.model.visual.to(memory_format=memory_format)

    def device_name(self) -> str:
        """As a result file calls it."""
        return torch.cuda.get_device_name() if self.device == "cuda" else self.device

    def loss(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """Cross-entropy of 100 times the cosines; encodes the text if it is not given."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            pixels = ((x - self.mean) / self.std).contiguous(memory_format=self.memory_format)
            image = F.normalize(self.loaded.model.encode_image(pixels).float(), dim=-1)
            if text is None:
                text = self.loaded.model.encode_text(self.tokens, normalize=True).T
            return F.cross_entropy((100 * image @ text).float(), self.y)

    def floor(self, steps: int) -> float:
        """Seconds a step: passes of the image tower, and nothing that uses their results."""
        visual = self.loaded.model.visual
        self.use(fast_memory_format(visual))

        def step() -> None:
            visual.requires_grad_(False)
            for _ in range(ATTACK_STEPS):
                x = self.x.clone().requires_grad_()
                torch.autograd.grad(self.loss(x, self.text), x)
            visual.requires_grad_(True)
            torch.autograd.grad(self.loss(self.x, self.text), list(visual.parameters()), allow_unused=True)

        taken = self.seconds(step, steps)
        visual.requires_grad_(False)
        return taken

    def published(self, steps: int) -> float:
        """Seconds a step with text encoded in every pass and no weight frozen."""
        model = self.loaded.model
        self.use(torch.contiguous_format)
        model.requires_grad_(True)
        optimizer = torch.optim.SGD(model.visual.parameters(), lr=1e-5, momentum=0.9)

        def step() -> None:
            x = self.x.clone()
            optimizer.zero_grad()
            for _ in range(ATTACK_STEPS):
                x = x.detach().requires_grad_()
                self.loss(x).backward()
                assert x.grad is not None
                x = (x + STEP * x.grad.sign()).clamp(self.x - EPS, self.x + EPS).clamp(0, 1)
            optimizer.zero_grad()
            self.loss(x.detach()).backward()
            optimizer.step()

        taken = self.seconds(step, steps)
        model.zero_grad()
        model.requires_grad_(False)
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, or an open_clip architecture, untrained")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        spec = "tiny" if args.model == "tiny" else untrained(args.model, work / "model")
        write_images(work / "data", clipguard.load_model(spec).preprocessing.image_size[0])
        bare = Bare(spec, work / "data", args.batch_size)
        bare.floor(3)  # warm-up
        bare.published(1)
        ours(spec, work / "data", work / "warm-up", 2, args.batch_size)
        for number in range(args.runs):
            floor = bare.floor(args.steps)
            own = ours(spec, work / "data", work / f"run-{number}", args.steps, args.batch_size)
            runs.append({"ours": own, "floor": floor, "published": bare.published(max(1, args.steps // 5))})
            print(json.dumps(runs[-1]), flush=True)
    ratios = {
        "ours over floor": [r["ours"] / r["floor"] for r in runs],
        "published over ours": [r["published"] / r["ours"] for r in runs],
    }
    entry = {
        "model": args.model,
        "batch_size": args.batch_size,
        "classes": CLASSES,
        "attack_steps": ATTACK_STEPS,
        "seconds_a_step": runs,
        "ratios": {
            name: {"median": round(statistics.median(v), 3), "min": round(min(v), 3), "max": round(max(v), 3)}
            for name, v in ratios.items()
        },
        "provenance": provenance() | {"device": bare.device_name()},
    }
    print(json.dumps(entry["ratios"], indent=1))
    save(f"finetuning_speed_{args.model}{'' if bare.device == 'cpu' else '_' + bare.device}", entry)


if __name__ == "__main__":
    main()
