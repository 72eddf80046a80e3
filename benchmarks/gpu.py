"""How fast is a GPU, how much of that does clipguard get out of it, and how long does a benchmark take?

`python gpu.py` measures on a CUDA device, with random weights and without network, for ViT-B/32, ViT-L/14, RN50,
ConvNeXt-B and the embedded model:

- rates: images/s of a bare open_clip tower's forward and input gradient, and of its forward alone, in bfloat16, TF32
  and float32, eager and compiled, over batch sizes;
- attacks: clipguard's images/s and passes/s where nothing falls, and in per cent of the bare rates (the seconds that
  its passes would take there, over the seconds that they took; clean images and verification, which are always float32
  and eager, included);
- reference: the same work by the reference library, in float32, eager, and how many times faster clipguard is;
- suites: the wall time of 1,000 images under `autoattack-fast` and `autoattack` at three eps, once where nothing falls
  and once where nothing stands. What would take over `--limit` seconds is reckoned from the passes that it needs, and
  the entry says so.

GPU utilisation (NVML's) goes with attacks and suites where it can be read. A cell that does not fit into memory is
null, with the reason. Writes `gpu.json` and `gpu.md` into `results/` (`--out` takes another folder) after every step.
All of it takes hours, most of them for compiling; `--models`, `--parts`, `--batch-sizes`, `--ways` and `--suites` take
less. `--quick` is a minute or two that shows that all of it works, on `--device cpu`, too. No figures of a GPU are
committed: this has been run on CPUs only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Cell, load_cell, passes, provenance, untrained
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.batching import is_out_of_memory
from clipguard.attacks.engine.passes.precision import logits_at, tf32
from clipguard.attacks.engine.reference import ReferenceEngine
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.environment.device import choose_device
from clipguard.core.errors import ClipguardError, first_line
from clipguard.models.classifier import ZeroShotClassifier

MODELS = ["ViT-B-32", "ViT-L-14", "RN50", "convnext_base", "tiny"]
BATCH_SIZES = [16, 64, 256, 1024]
WAYS = [f"{precision}, {how}" for precision in ("float32", "tf32", "bfloat16") for how in ("eager", "compiled")]
PLAIN = "float32, eager"
SUITE_WAYS = [PLAIN, "bfloat16, compiled"]  # the default, and what is meant for a GPU
SUITES = ["autoattack-fast", "autoattack"]
PARTS = ["rates", "attacks", "reference", "suites"]
STANDING = [1e-6, 2e-6, 4e-6]  # eps at which nothing falls
FALLING = [1 / 255, 4 / 255, 8 / 255]
QUICK = {"models": ["tiny", "ViT-S-32"], "batch_sizes": [2, 4], "ways": [PLAIN], "iterations": 2, "images": 4}
QUICK |= {"seconds": 0.0, "limit": 5.0}


class Bare(nn.Module):
    """A tower and a matrix product, as a loop around open_clip has them."""

    def __init__(self, classifier: ZeroShotClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        c = self.classifier
        normalized = ((pixels - c.mean) / c.std).contiguous(memory_format=c.memory_format)
        return c.logit_scale * (c.model.encode_image(normalized, normalize=True) @ c.text)


class Utilization:
    """Samples how busy the GPU is, five times a second, within a `with`.

    Attributes:
        percent: the mean, or None where nobody tells.
    """

    def __init__(self, device: str) -> None:
        self.percent: float | None = None
        self._device, self._over = device, threading.Event()
        self._samples: list[float] = []

    def __enter__(self) -> Utilization:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._samples:
            self.percent = round(statistics.mean(self._samples), 1)

    def _sample(self) -> None:
        if not self._device.startswith("cuda"):
            return
        while not self._over.wait(0.2):
            try:
                self._samples.append(float(torch.cuda.utilization(self._device)))  # by pynvml
            except Exception:  # no pynvml, or one of NVML's own errors, which this cannot import: ask the command
                if not shutil.which("nvidia-smi"):
                    return
                query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
                told = subprocess.run(query, capture_output=True, text=True)
                numbers = told.stdout.split()
                if len(numbers) != 1:  # of several GPUs it is not said which is ours
                    return
                self._samples.append(float(numbers[0]))


@dataclass
class Study:
    """What is measured, how, and what was found so far."""

    device: str
    models: list[str]
    batch_sizes: list[int]
    ways: list[str]
    parts: list[str]
    suites: list[str]
    iterations: int
    images: int  # of a suite
    seconds: float  # of one rate
    limit: float  # seconds of a suite that is measured
    out: Path
    found: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Note a result, and write all so far."""
        self.found[part].append(row)
        print(part, json.dumps(row), flush=True)
        self.write()

    def write(self) -> None:
        """`gpu.json` and `gpu.md`."""
        on_gpu = self.device.startswith("cuda")
        settings = {
            key: getattr(self, key) for key in ("models", "batch_sizes", "ways", "suites", "iterations", "images")
        }
        content = {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else f"CPU, {platform.machine()}",
            "cuda": torch.version.cuda if on_gpu else None,
            "settings": settings,
            **self.found,
            "load_average": round(os.getloadavg()[0], 2),
            "provenance": provenance(),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.out / "gpu.md").write_text(markdown(content))

    def rate(self, model: str, way: str, batch_size: int | None = None) -> dict[str, Any] | None:
        """The rates of a model at a batch size, or else those of its fastest."""
        rows = [r for r in self.found["rates"] if (r["model"], r["way"]) == (model, way) and r["gradient"]]
        if batch_size is not None:
            rows = [r for r in rows if r["batch_size"] == batch_size]
        return max(rows, key=lambda r: r["gradient"], default=None)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def guarded(work: Callable[[], dict[str, Any]], empty: dict[str, Any]) -> dict[str, Any]:
    """What `work` finds, or `empty` with the reason why it finds nothing."""
    try:
        return work()
    except (RuntimeError, MemoryError, ClipguardError) as error:
        if is_out_of_memory(error):
            reason = "out of memory"
        elif isinstance(error, (ClipguardError, torch._dynamo.exc.TorchDynamoException)):
            reason = first_line(error)
        else:
            raise
    if torch.cuda.is_available():  # not above: the error's traceback still held the memory
        torch.cuda.empty_cache()
    return empty | {"reason": reason}


# rates


def timed_passes(study: Study, model: nn.Module, x: Tensor, labels: Tensor, way: str, *, gradient: bool) -> float:
    """Images a second, the median of three runs, each of as many passes as fill the time."""
    precision = way.partition(",")[0]

    def one() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.set_grad_enabled(gradient), tf32(x.device, precision != "float32"):
            leaf = x.clone().requires_grad_(gradient)
            logits = logits_at(precision, model, leaf).float()
            if gradient:
                torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)

    def many(n: int) -> float:
        synchronize(study.device)
        started = time.perf_counter()
        for _ in range(n):
            one()
        synchronize(study.device)
        return time.perf_counter() - started

    for _ in range(3 if study.seconds else 1):  # a compiled model, too, is ready after three
        many(1)
    n = max(1, min(1000, int(study.seconds / many(1))))
    return round(len(x) * n / statistics.median(many(n) for _ in range(3 if study.seconds else 1)), 2)


def measure_rates(study: Study, name: str, cell: Cell) -> None:
    """Part (a): the device's own rates."""
    for way in study.ways:
        for n in study.batch_sizes:
            torch._dynamo.reset()  # it compiles one function for a few shapes only
            bare: nn.Module = Bare(cell.classifier)
            if way.endswith("compiled"):
                mode = "reduce-overhead" if study.device.startswith("cuda") else "default"
                bare = torch.compile(bare, dynamic=False, mode=mode)  # type: ignore[assignment]
            x, labels = columns(cell, n)

            def work(bare: nn.Module = bare, x: Tensor = x, labels: Tensor = labels, way: str = way) -> dict[str, Any]:
                rates = [timed_passes(study, bare, x, labels, way, gradient=g) for g in (True, False)]
                return {"gradient": rates[0], "forward": rates[1]}

            row = {"model": name, "way": way, "batch_size": n}
            study.add("rates", row | guarded(work, {"gradient": None, "forward": None}))


# attacks


def make_cell(name: str, device: str) -> Cell:
    """A model on the device, and an image."""
    if name == "tiny":
        cell = load_cell("tiny", "emoji-food", 1)
    else:
        classifier, size = untrained(name)
        cell = Cell("random", classifier, [Example(0, torch.rand(3, size, size), 0)])
    cell.classifier.to(device)
    return cell


def columns(cell: Cell, n: int) -> tuple[Tensor, Tensor]:
    """n images on the device, noise around the cell's one, and what the model takes them for."""
    torch.manual_seed(0)
    device = next(cell.classifier.parameters()).device
    image = cell.examples[0].image.to(device)
    x = 0.5 * image + 0.5 * torch.rand(n, *image.shape).to(device)
    return x, predicted(cell.classifier, x)


def predicted(classifier: nn.Module, x: Tensor) -> Tensor:
    """(n,) classes."""
    with torch.no_grad():
        return torch.cat([classifier(part).argmax(dim=1) for part in x.split(16)])


def examples(x: Tensor, labels: Tensor) -> list[Example]:
    """For an engine."""
    return [Example(i, image, label) for i, (image, label) in enumerate(zip(x, labels.tolist(), strict=True))]


def run(
    study: Study, cell: Cell, images: Sequence[Example], recipe: str, radii: list[float], way: str, n: int, engine: str
) -> dict[str, Any]:
    """One attack: seconds, passes, how many images stand, how busy the GPU was."""
    precision, how = way.split(", ")
    options = EngineOptions(batch_size=n, precision=precision, compile=how == "compiled")
    kind = Engine if engine == "clipguard" else ReferenceEngine
    runner = kind(cell.classifier, parse_recipe(recipe), ThreatModel("linf"), radii, options)
    # The library would leave convolutions at TF32, which is PyTorch's default.
    with Utilization(study.device) as busy, tf32(torch.device(study.device), precision != "float32"):
        synchronize(study.device)
        started = time.perf_counter()
        outcomes = list(runner.run(images))
        synchronize(study.device)
        seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "costs": dict(runner.costs),
        "robust": [sum(o.eps_outcomes[k].robust for o in outcomes) for k in range(len(radii))],
        "batch_size_at_the_end": runner.evaluator.batch_size,
        "gpu_utilization": busy.percent,
    }


def attacks(iterations: int) -> dict[str, str]:
    """Short runs of every attack, by its name."""
    return {
        "apgd-ce": f"apgd-ce(iterations={iterations})",
        "apgd-t": f"apgd-t(iterations={iterations},targets=1)",
        "fab-t": f"fab-t(iterations={iterations},targets=1)",
        "square": f"square(queries={4 * iterations})",
        f"pgd-{iterations}": f"pgd-{iterations}",
    }


def in_per_cent(costs: dict[str, Cost], seconds: float, rate: dict[str, Any]) -> float:
    """Of the device's own rates: the seconds that the passes would take there, over those that they took."""
    forward, backward = (sum(getattr(cost, key) for cost in costs.values()) for key in ("forward", "backward"))
    return round(100 * (backward / rate["gradient"] + (forward - backward) / rate["forward"]) / seconds, 1)


def measure_attacks(study: Study, name: str, cell: Cell) -> None:
    """Parts (b) and (c): clipguard's rates, and the reference library's on the same work."""
    for way in study.ways:
        rate = study.rate(name, way)
        if rate is None:
            study.add("attacks", {"model": name, "way": way, "attack": None, "reason": "no rate of the device to take"})
            continue
        torch._dynamo.reset()
        n = rate["batch_size"]
        images = examples(*columns(cell, n))
        for attack, recipe in attacks(study.iterations).items():
            engines = ["clipguard"]
            if way == PLAIN and "reference" in study.parts and not attack.startswith("pgd"):  # which it lacks
                engines.append("reference")
            rows = {}
            for engine in engines:

                def work(
                    recipe: str = recipe, way: str = way, n: int = n, engine: str = engine, images: Any = images
                ) -> dict[str, Any]:
                    if study.seconds or way.endswith("compiled"):  # not on the clock
                        run(study, cell, images, recipe, STANDING[:1], way, n, engine)
                    return run(study, cell, images, recipe, STANDING[:1], way, n, engine)

                rows[engine] = guarded(work, {"seconds": None})
            own = rows["clipguard"]
            row = {"model": name, "way": way, "attack": attack, "recipe": recipe, "batch_size": n}
            study.add("attacks", row | summary(own, n, rate))
            if "reference" in rows:
                other = rows["reference"]
                both = own["seconds"] and other["seconds"]
                times = round(other["seconds"] / own["seconds"], 2) if both else None
                study.add("reference", row | summary(other, n, rate) | {"times_faster_is_clipguard": times})


def summary(ran: dict[str, Any], n: int, rate: dict[str, Any]) -> dict[str, Any]:
    """A run in rates; one that did not succeed as it is."""
    if ran["seconds"] is None:
        return ran
    costs, seconds = ran.pop("costs"), ran["seconds"]
    done = passes(costs)
    return ran | {
        "images_per_second": round(n / seconds, 2),
        "passes_per_second": round(done["forward"] / seconds, 2),
        "per_cent_of_the_device": in_per_cent(costs, seconds, rate),
        "passes": done,
    }


# suites


class Linear(nn.Module):
    """A classifier of small images whose passes cost nothing, to count those that an attack makes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3 * 8 * 8, 20))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@cache
def needed(suite: str) -> dict[str, int]:
    """Forward passes by attack, for an image that stands, at one eps."""
    model = Linear()
    image = torch.rand(3, 8, 8)
    example = Example(0, image, int(model(image[None]).argmax()))
    engine = Engine(model, parse_recipe(suite), ThreatModel("linf"), STANDING[:1], EngineOptions(batch_size=64))
    (outcome,) = engine.run([example])
    if not outcome.eps_outcomes[0].robust:
        raise SystemExit("An image fell where passes are counted.")
    return {name: cost.forward for name, cost in engine.costs.items() if name not in ("clean", "verification")}


def reckoned(study: Study, name: str, way: str, counts: dict[str, int]) -> float | None:
    """Seconds of all images at all eps, by the passes that they need and clipguard's own rates of them."""
    rates = {
        row["attack"]: row["passes_per_second"]
        for row in study.found["attacks"]
        if (row["model"], row["way"]) == (name, way) and row.get("passes_per_second")
    }
    if not set(counts) <= set(rates):
        return None
    return study.images * len(STANDING) * sum(counts[attack] / rates[attack] for attack in counts)


def measure_suites(study: Study, name: str, cell: Cell) -> None:
    """Part (d): wall time."""
    for way in [way for way in SUITE_WAYS if way in study.ways]:
        rate = study.rate(name, way)
        if rate is None:
            study.add("suites", {"model": name, "way": way, "suite": None, "reason": "no rate of the device to take"})
            continue
        n = rate["batch_size"]
        x, labels = columns(cell, study.images)
        images = examples(x, labels)
        soft = softened(cell, x[:64])
        soft_images = examples(x, predicted(soft.classifier, x))
        few = soft_images[: max(1, min(n, len(images) // 10))]
        if way.endswith("compiled"):  # not on the clock
            torch._dynamo.reset()
            for warm, some, radii in ((cell, images[:n], STANDING), (soft, few, FALLING)):
                measured(study, warm, some, "apgd-ce(iterations=2)+square(queries=2)", radii, way, n)
        for suite in study.suites:
            row = {"model": name, "way": way, "suite": suite, "images": study.images, "batch_size": n}
            standing = row | {"case": "nothing falls", "eps": STANDING}
            estimate = reckoned(study, name, way, needed(suite))
            if estimate is not None and estimate < study.limit:
                found = measured(study, cell, images, suite, STANDING, way, n)
            else:
                found = {"seconds": estimate and round(estimate, 1), "how": "reckoned from passes"}
            study.add("suites", standing | found)
            falling = row | {"case": "nothing stands", "eps": FALLING}
            first = measured(study, soft, few, suite, FALLING, way, n)
            if first["seconds"] is not None and first["seconds"] * len(images) / len(few) < study.limit:
                found = measured(study, soft, soft_images, suite, FALLING, way, n)
            else:
                share = len(images) / len(few)
                found = first | {"seconds": first["seconds"] and round(share * first["seconds"], 1)}
                found["how"] = f"reckoned from {len(few)} images"
            study.add("suites", falling | found)


def measured(
    study: Study, cell: Cell, images: Sequence[Example], suite: str, radii: list[float], way: str, n: int
) -> dict[str, Any]:
    """A suite's seconds, and what came of it."""

    def work() -> dict[str, Any]:
        found = run(study, cell, images, suite, radii, way, n, "clipguard")
        return found | {"passes": passes(found.pop("costs")), "how": "measured"}

    return guarded(work, {"seconds": None, "how": "measured"})


def softened(cell: Cell, x: Tensor) -> Cell:
    """The same tower with classes that any small step mixes up: what all images have in common counts for nothing."""
    classifier = cell.classifier
    with torch.no_grad():
        common = torch.cat([classifier.embed(part) for part in x.split(16)]).float().mean(dim=0)
    common = F.normalize(common, dim=0)
    text = classifier.text - common[:, None] * (common @ classifier.text)
    soft = ZeroShotClassifier(classifier.model, F.normalize(text, dim=0), classifier.preprocessing, "model")
    return Cell(cell.name, soft, [], cell.model)


# the Markdown file


def table(rows: Sequence[dict[str, Any]], keys: dict[str, str]) -> list[str]:
    """Lines of a table of these keys, by the heading of each."""
    lines = [f"| {' | '.join(keys.values())} |", f"|{' --- |' * len(keys)}"]
    for row in rows:
        cells = [row.get(key) for key in keys]
        said = ["" if cell is None else f"{cell:,}" if isinstance(cell, (int, float)) else str(cell) for cell in cells]
        lines.append(f"| {' | '.join(said)} |")
    return lines


def markdown(content: dict[str, Any]) -> str:
    """All tables."""
    model = {"model": "model", "way": "precision"}
    how = {"batch_size": "batch", "images_per_second": "images/s", "passes_per_second": "passes/s"}
    versions = content["provenance"]["versions"]
    lines = [
        f"# {content['device']}",
        "",
        f"clipguard {versions['clipguard']}, PyTorch {versions['torch']}, CUDA {content['cuda']}, "
        f"{content['provenance']['date']}. Random weights. `gpu.py` says what is measured.",
        "",
        "## The device's own rate, images/s",
        "",
        *table(
            content["rates"],
            model
            | {"batch_size": "batch", "gradient": "with input gradient", "forward": "forward", "reason": "why not"},
        ),
        "",
        "## clipguard, where nothing falls",
        "",
        *table(
            content["attacks"],
            model
            | {"recipe": "attack"}
            | how
            | {"per_cent_of_the_device": "% of the device", "gpu_utilization": "GPU busy, %", "reason": "why not"},
        ),
        "",
        "## The reference library, on the same work",
        "",
        *table(
            content["reference"],
            model | {"recipe": "attack"} | how | {"times_faster_is_clipguard": "clipguard is faster by"},
        ),
        "",
        "## Wall time of whole suites, at three eps",
        "",
        *table(
            content["suites"],
            model
            | {"suite": "suite", "images": "images", "case": "case", "robust": "standing at each eps"}
            | {"seconds": "seconds", "how": "how", "gpu_utilization": "GPU busy, %", "reason": "why not"},
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models, batches and runs, unless they are given")
    parser.add_argument("--models", nargs="+", help=f"tiny, or architectures of open_clip; {' '.join(MODELS)}")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help=" ".join(map(str, BATCH_SIZES)))
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default all; each needs those before")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES, help="default both")
    parser.add_argument("--iterations", type=int, help="of the attacks whose rates are taken; 20")
    parser.add_argument("--images", type=int, help="of a suite; 1000")
    parser.add_argument("--seconds", type=float, help="that a rate is measured, three times; 1")
    parser.add_argument("--limit", type=float, help="seconds of a suite that is measured; 300")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    defaults: dict[str, Any] = {"models": MODELS, "batch_sizes": BATCH_SIZES, "ways": WAYS, "iterations": 20}
    defaults |= {"images": 1000, "seconds": 1.0, "limit": 300.0}
    if args.quick:
        defaults |= QUICK
    chosen = {key: value for key, value in vars(args).items() if key in defaults and value is not None}
    study = Study(
        device=choose_device(args.device), parts=args.parts, suites=args.suites, out=args.out, **(defaults | chosen)
    )
    for name in study.models:
        cell = make_cell(name, study.device)
        measure_rates(study, name, cell)
        if {"attacks", "reference", "suites"} & set(study.parts):
            measure_attacks(study, name, cell)
        if "suites" in study.parts:
            measure_suites(study, name, cell)


if __name__ == "__main__":
    main()
