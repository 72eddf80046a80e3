"""How much longer is `clipguard bench --attack none` than a bare open_clip loop over the same images and workers?

`python loading.py [DATA]` measures clean accuracy of an open_clip folder (default: the embedded model) on any data set
that `--dataset` takes, in turns by the command and by a loop with open_clip's own model, text and transform over a
`torch.utils.data.DataLoader` with as many workers and the same batch; and by that loop with the model in the memory
format that clipguard runs convolutions in, which is faster. Each is a process of its own, timed whole, from its start
to its exit; processor time is that of its workers, too. Writes `results/loading.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import open_clip
import torch
from common import provenance, save
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipguard.attacks.engine.passes.batching import CPU_BATCH
from clipguard.core.environment.decoders import choose_decoders
from clipguard.data import ZeroShotDataset, load_dataset
from clipguard.models.classifier import fast_memory_format

TINY = str(files("clipguard") / "assets" / "models" / "tiny")


class Rows(Dataset[tuple[Tensor, int]]):
    """Transformed images and labels."""

    def __init__(self, data: ZeroShotDataset, indices: np.ndarray, transform: Callable[[Image], Tensor]) -> None:
        self.data, self.indices, self.transform = data, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        index = int(self.indices[row])
        return self.transform(self.data.image(index)), int(self.data.labels[index])


def bare(args: argparse.Namespace) -> int:
    """Images that a plain open_clip loop gets right."""
    data = load_dataset(args.data)
    name = f"local-dir:{args.model}"
    model, _, transform = open_clip.create_model_and_transforms(name, device=args.device)
    model.eval()
    if args.same_format:
        model.to(memory_format=fast_memory_format(model))
    templates = [template.format for template in data.templates]
    tokenizer = open_clip.get_tokenizer(name)
    right = 0
    with torch.no_grad():
        text = open_clip.build_zero_shot_classifier(model, tokenizer, data.class_names, templates, device=args.device)
        rows = Rows(data, data.subset(args.n, 0), transform)
        on_gpu = args.device.startswith("cuda")
        loader = DataLoader(rows, args.batch_size, num_workers=args.workers, pin_memory=on_gpu)
        for images, labels in loader:
            images, labels = (t.to(args.device, non_blocking=True) for t in (images, labels))
            logits = 100 * model.encode_image(images, normalize=True) @ text
            right += int((logits.argmax(dim=1) == labels).sum())
    return right


def run_bare(args: argparse.Namespace, *, same_format: bool = False) -> int:
    """The same in a process of its own."""
    known = ("data", "model", "n", "workers", "batch_size", "device")
    settings = json.dumps({name: getattr(args, name) for name in known} | {"same_format": same_format})
    done = subprocess.run([sys.executable, __file__, "--bare", settings], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def run_command(args: argparse.Namespace) -> int:
    """Images that `clipguard bench` gets right."""
    command = ["bench", "--model", f"local-dir:{args.model}", "--dataset", args.data, "--attack", "none", "--no-store"]
    command += ["--n-samples", "all" if args.n is None else str(args.n), "--decoders", str(args.workers)]
    command += ["--batch-size", str(args.batch_size), "--device", args.device, "--format", "json"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--out", str(Path(folder) / "run")]
        done = subprocess.run([sys.executable, "-m", "clipguard", "-q", *command], check=True, capture_output=True)
    return int(json.loads(done.stdout)["cells"][0]["correct"])


COMMAND = "clipguard bench"
WAYS: dict[str, Callable[[argparse.Namespace], int]] = {
    "bare loop": run_bare,
    "bare loop, same format": partial(run_bare, same_format=True),
    COMMAND: run_command,
}


def processor_seconds() -> float:
    """Of all processes that this one started and that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Seconds of all in turns, every other time in reverse."""
    names = list(WAYS)
    wall: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    right, load = {}, []
    for repeat in range(args.repeats):
        for name in names[:: -1 if repeat % 2 else 1]:
            load.append(round(os.getloadavg()[0], 2))
            started, used = time.perf_counter(), processor_seconds()
            right[name] = WAYS[name](args)
            wall[name].append(round(time.perf_counter() - started, 2))
            processor[name].append(round(processor_seconds() - used, 2))
        print(json.dumps({"seconds": wall, "processor_seconds": processor, "load": load}), flush=True)
    return {
        "load_average_before_each": load,
        "right": right,
        "seconds": wall,
        "processor_seconds": processor,
        "ratio_of_clipguard_to": {
            name: {
                "median": ratio(wall, name, statistics.median),
                "fastest": ratio(wall, name, min),
                "median_of_processor_seconds": ratio(processor, name, statistics.median),
            }
            for name in names
            if name != COMMAND
        },
    }


def ratio(seconds: dict[str, list[float]], loop: str, of: Callable[[list[float]], float]) -> float:
    """Of clipguard's seconds to a loop's."""
    return round(of(seconds[COMMAND]) / of(seconds[loop]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="emoji-food", help="a data set")
    parser.add_argument("--model", default=TINY, help="an open_clip folder")
    parser.add_argument("--n", type=int, help="images, default all")
    parser.add_argument("--workers", type=int, help="default: what clipguard takes for so many images")
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bare", type=json.loads, help=argparse.SUPPRESS)  # the loop, in its own process
    args = parser.parse_args()
    if args.bare:
        print(bare(argparse.Namespace(**args.bare)))
        return
    n = len(load_dataset(args.data).subset(args.n, 0))
    args.workers = choose_decoders(args.workers, n)
    for work in WAYS.values():  # without the clock: data sets go into a cache, and clipguard tests the processor once
        work(argparse.Namespace(**{**vars(args), "n": args.batch_size}))
    content = {
        **provenance(),
        "cores": os.cpu_count(),
        "data": Path(args.data).name,
        "model": Path(args.model).name,
        "images": n,
        "workers": args.workers,
        "batch_size": args.batch_size,
        "device": args.device,
        **measure(args),
    }
    save("loading", content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
