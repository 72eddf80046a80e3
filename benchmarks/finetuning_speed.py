"""What does a fine-tuning step cost beyond its passes, and beside the way published scripts do it?

`python finetuning_speed.py` times, in turn in one process and at least three times, steps of adversarial fine-tuning
(TeCoA: three attack steps, then one update of the image tower) on 200 classes of random images:

- ours: `clipguard.finetune`, all that a step does (data, attack, loss, optimiser, numbers);
- floor: the same forward and backward passes of the same image tower, bare, in the memory format that clipguard uses:
  three for the pixels' gradient with frozen weights, one for the weights';
- published: as in the scripts of TeCoA's lineage, the text of all classes is encoded in every pass, with gradients, and
  the attack's backward passes reach all weights; in PyTorch's default memory format, as they run.

Ours is timed from its tenth step on; what the first ten took beyond that is its start-up. Then one more run of ours
waits for the device before and after each part of a step, which itemises it (the bare passes likewise), and on CUDA a
last one is traced for the share of time in which no kernel ran.

Writes `results/finetuning_speed_MODEL.json`. `--model ARCH` times an untrained open_clip model of that architecture.
On CUDA, which is the default where it is there, all three run under the same bfloat16 autocast, and the file is named
for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
from clipguard.finetuning.run import run_finetune
from clipguard.finetuning.settings import resolve
from clipguard.finetuning.training import objective, step, trainer
from clipguard.models.classifier import fast_memory_format

CLASSES, ATTACK_STEPS = 200, 3
EPS, STEP = 4 / 255, 4 / 255 / ATTACK_STEPS * 2.5
TEMPLATE = "This is a photo of a {}"
FIRST = trainer.READ_EVERY  # steps that are not timed; the numbers of the last of them are waited for


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


class Clock:
    """A run's progress: when each step was done."""

    def __init__(self, on_step: Callable[[int], None] = lambda _: None) -> None:
        self.on_step = on_step
        self.times: list[float] = []

    def start(self, what: str, total: int) -> None:  # noqa: ARG002
        """A part of the run begins."""
        self.training = what == trainer.TRAINING
        self.times = [time.perf_counter()]

    def advance(self, note: str = "") -> None:  # noqa: ARG002
        """A step is done, or an image read."""
        self.times.append(time.perf_counter())
        if self.training:
            self.on_step(len(self.times) - 1)


class Ours:
    """Real runs."""

    def __init__(self, spec: str, data: Path, work: Path, batch_size: int, device: str) -> None:
        self.work, self.runs = work, 0
        self.settings: dict[str, Any] = {"batch_size": batch_size, "attack_steps": ATTACK_STEPS, "eps": "4", "lr": 1e-5}
        self.settings |= {"model": spec, "dataset": str(data), "templates": TEMPLATE, "val_fraction": 0.0}
        self.settings |= {"preset": "none", "method": "tecoa", "evaluation": False, "device": device}

    def run(self, steps: int, on_step: Callable[[int], None] = lambda _: None) -> tuple[float, float]:
        """Seconds a step after the first ones, and seconds that the first ones took beyond that."""
        self.runs += 1
        clock, total = Clock(on_step), FIRST + steps
        config = resolve(self.settings | {"steps": total, "save_every": total})
        run_finetune(config, self.work / f"run-{self.runs}", "", clock)
        times = clock.times
        seconds = (times[total] - times[FIRST]) / steps
        return seconds, times[FIRST] - times[0] - FIRST * seconds

    def itemised(self, steps: int, wait: Callable[[], None]) -> dict[str, float]:
        """Seconds a step of each of its parts, waiting for the device before and after; "rest" is between them."""
        parts: dict[str, float] = defaultdict(float)
        started: list[float] = []

        @contextmanager
        def timed(name: str) -> Iterator[None]:
            wait()
            before = time.perf_counter()
            yield
            wait()
            parts[name.removeprefix("clipguard: ")] += time.perf_counter() - before

        def on_step(number: int) -> None:
            if number == FIRST:
                parts.clear()
                started.append(time.perf_counter())
            if number == FIRST + steps:
                parts["all"] = time.perf_counter() - started[0]

        with ExitStack() as stack:
            for module in (objective, step, trainer):
                stack.enter_context(patch.object(module, "record_function", timed))
            self.run(steps, on_step)
        parts["forward"] = parts.pop("objective") - parts["attack"]
        whole = parts.pop("all")
        parts["rest"] = whole - sum(parts.values())
        return {name: seconds / steps for name, seconds in parts.items()}

    def idle_share(self, steps: int) -> float:
        """Of the time of steps on CUDA: in which no kernel ran."""
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

        def on_step(number: int) -> None:
            if number == FIRST:
                profiler.start()
            if number == FIRST + steps:
                torch.cuda.synchronize()
                profiler.stop()

        self.run(steps, on_step)
        on_gpu = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return gaps((e.time_range.start, e.time_range.end) for e in on_gpu if not e.name.startswith("clipguard: "))


def gaps(intervals: Iterable[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that no interval covers."""
    ordered = sorted(intervals)
    first, covered = ordered[0][0], 0.0
    end = first
    for start, stop in ordered:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - covered / (end - first)


class Bare:
    """The same passes by hand."""

    def __init__(self, spec: str, data: Path, batch_size: int, device: str) -> None:
        self.device = device
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

    def attack(self) -> None:
        """The passes of a step's attack."""
        self.loaded.model.visual.requires_grad_(False)
        for _ in range(ATTACK_STEPS):
            x = self.x.clone().requires_grad_()
            torch.autograd.grad(self.loss(x, self.text), x)

    def update(self) -> None:
        """The pass for the weights' gradient."""
        visual = self.loaded.model.visual
        visual.requires_grad_(True)
        torch.autograd.grad(self.loss(self.x, self.text), list(visual.parameters()), allow_unused=True)

    def floor(self, steps: int, parts: tuple[str, ...] = ("attack", "update")) -> float:
        """Seconds a step: passes of the image tower, and nothing that uses their results."""
        visual = self.loaded.model.visual
        self.use(fast_memory_format(visual))
        passes = [getattr(self, part) for part in parts]

        def step() -> None:
            for some in passes:
                some()

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
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    device = choose_device(args.device)
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        spec = "tiny" if args.model == "tiny" else untrained(args.model, work / "model")
        write_images(work / "data", clipguard.load_model(spec).preprocessing.image_size[0])
        bare, own = (
            Bare(spec, work / "data", args.batch_size, device),
            Ours(spec, work / "data", work, args.batch_size, device),
        )
        bare.floor(3)  # warm-up
        bare.published(1)
        for _ in range(args.runs):
            floor = bare.floor(args.steps)
            seconds, start_up = own.run(args.steps)
            published = bare.published(max(1, args.steps // 5))
            runs.append({"ours": seconds, "floor": floor, "published": published, "start-up, in all": start_up})
            print(json.dumps(runs[-1]), flush=True)
        itemised = {
            "ours": own.itemised(args.steps, bare.wait),
            "floor": {part: bare.floor(args.steps, (part,)) for part in ("attack", "update")},
        }
        idle = {"gpu_idle_share": round(own.idle_share(args.steps), 4)} if device.startswith("cuda") else {}
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
        "ms_a_step_by_part": {
            who: {part: round(1000 * seconds, 2) for part, seconds in sorted(parts.items())}
            for who, parts in itemised.items()
        },
        **idle,
        "provenance": provenance() | {"device": bare.device_name()},
    }
    print(
        json.dumps({k: v for k, v in entry.items() if k in ("ratios", "ms_a_step_by_part", "gpu_idle_share")}, indent=1)
    )
    save(f"finetuning_speed_{args.model}{'' if bare.device == 'cpu' else '_' + bare.device}", entry)


if __name__ == "__main__":
    main()
