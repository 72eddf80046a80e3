"""The command lines whose results are recorded, in the order in which they run, and the files that they are given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

RECIPE_TOML = """\
name = "short"
stages = ["apgd-ce(iterations=4,restarts=2)", {attack = "apgd-t", iterations = 3, targets = 2}, "square(queries=6)"]
"""
RECIPE_YAML = """\
name: small-suite
stages:
  - apgd-ce(iterations=3)
  - apgd-t(iterations=3,targets=2)
  - fab-t(iterations=3,targets=2)
  - attack: square
    queries: 6
"""
MINE_TOML = """\
source = "pictures"
class_names = ["round thing", "square thing"]
templates = ["a photo of a {}.", "a drawing of a {}."]
single = "a picture of a {}."
native = true
"""
TUNE_YAML = """\
method: fare
dataset: emoji-food
steps: 3
batch_size: 4
n_samples: 16
val_fraction: 0.25
eval_samples: 4
attack_steps: 2
norm: l2
eps: 0.5
optimizer: sgd
"""
VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = ((200, 60, 40), (40, 90, 200), (60, 160, 80))


@dataclass(frozen=True)
class Command:
    """A command line, under a short name that its record has.

    before: changes files in the working folder first.
    """

    name: str
    line: str
    before: Callable[[Path], None] | None = None


def write_inputs(folder: Path) -> None:
    """The files that the commands name: pictures, a data set's description, recipes, prompts, names, settings."""
    picture(0, 60, 52).save(folder / "photo.png")
    for number in range(6):
        place = folder / "pictures" / ("round", "square")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(number, 56, 64).save(place / f"{number}.png")
    write_vit(folder / "vit")
    (folder / "recipe.toml").write_text(RECIPE_TOML)
    (folder / "recipe.yaml").write_text(RECIPE_YAML)
    (folder / "mine.toml").write_text(MINE_TOML)
    (folder / "tune.yaml").write_text(TUNE_YAML)
    (folder / "prompts.txt").write_text("a small {}.\na drawing of the {}.\n")
    (folder / "names.txt").write_text("cat\ndog\nflower\ntree\n")


def write_vit(folder: Path) -> None:
    """A small ViT as an open_clip folder, its weights by arithmetic and not by a library's random numbers."""
    import open_clip
    import safetensors.numpy

    folder.mkdir()
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = {}
    for number, (name, value) in enumerate(model.state_dict().items()):
        steps = np.arange(value.numel(), dtype=np.int64) * 7919 + number * 104729
        spread = (steps % 2003 - 1001).astype(np.float32) / 1001 / 16
        state[name] = (spread + (0 if value.ndim > 1 else 1)).reshape(value.shape).astype(np.float32)
    safetensors.numpy.save_file(state, folder / "open_clip_model.safetensors")


def picture(number: int, width: int, height: int) -> PIL.Image.Image:
    """A disc or a square on a gradient, in whole numbers only."""
    image = PIL.Image.new("RGB", (width, height))
    colour, size = COLOURS[number % 3], height // 3 - number
    pixels = []
    for y in range(height):
        for x in range(width):
            dx, dy = x - width // 2, y - height // 2
            inside = dx * dx + dy * dy < size * size if number % 2 == 0 else max(abs(dx), abs(dy)) < size
            pixels.append(colour if inside else (255 - 2 * y, 200 + (x + number) % 50, 3 * x % 256))
    image.putdata(pixels)
    return image


def damage_a_segment(folder: Path) -> None:
    """Let the store's first segment be longer than it was written."""
    path = sorted((folder / "store" / "cells").glob("*/*.parquet"))[0]
    path.write_bytes(path.read_bytes() + b"more")


FOOD, ANIMALS = "-d emoji-food", "-d emoji-animals"
ALL_ATTACKS = (
    "fgsm,pgd-3,cw-3,apgd-ce(iterations=4,restarts=2),apgd-dlr(iterations=4),apgd-t(iterations=3,targets=2),"
    "fab-t(iterations=3,targets=2),square(queries=8),apgd-ce(iterations=3)+square(queries=6)"
)
HELP = (
    "plan",
    "bench",
    "compare",
    "doctor",
    "certify",
    "report",
    "attack",
    "finetune",
    "merge",
    "convert",
    "inspect",
    "store",
    "list",
)
ERRORS = {
    "model": "bench -m tinny -d emoji-food",
    "quickgelu": "bench -m ViT-B-32:openai -d emoji-food",
    "attack": "bench -d emoji-food --attack pdg-10",
    "attack-option": "bench -d emoji-food --attack 'apgd-ce(step=3)'",
    "eps": "bench -d emoji-food --eps four",
    "taken": "bench -d emoji-food -n 2 --attack none --out food",
    "no-option": "bench --frobnicate",
    "no-result": "report store --out other.html",
    "method": "finetune --method timma",
    "no-weights": "inspect recipe.toml",
    "photo": "attack photo.png",
    "store": "store ls --store pictures",
    "first": "compare tiny tiny --first 3",
    "list": "list models --check",
}


def commands() -> Iterator[Command]:
    """All of them. Later ones use what earlier ones left."""
    yield Command("version", "--version")
    yield Command("help", "--help")
    for name in HELP:
        yield Command(f"help-{name}", f"{name} --help")
    for name in ("models", "datasets", "attacks", "methods", "protocols"):
        yield Command(f"list-{name}", f"list {name}")
    yield from _bench()
    yield from _store()
    yield from _images()
    yield from _training()
    yield from _looking()
    for name, line in ERRORS.items():
        yield Command(f"error-{name}", line)


def _bench() -> Iterator[Command]:
    yield Command("bench", "bench -n 1 --eps 32 --store store --no-probes")
    pgd = f"bench {FOOD} --attack pgd-3 --store store"
    yield Command("bench-stored", f"{pgd} --eps 1,8 -n 6 --out food --format json")
    yield Command("bench-stored-again", f"{pgd} --eps 1,8 -n 6 --out food-again --format csv")
    yield Command("bench-stored-more", f"{pgd} --eps 1,2,8 -n 8 --out food-more --format md")
    yield Command(
        "bench-batch-size", f"{pgd.replace('--store store', '--no-store')} --eps 1,8 -n 6 --batch-size 2 --no-probes"
    )
    few = f"bench {FOOD} -n 3 --no-store --no-probes --format csv"
    for mode in ("independent", "nested"):
        stored = few.replace("--no-store", "--store store")
        yield Command(f"bench-{mode}", f"{stored} --eps-mode {mode} --attack 'apgd-ce(iterations=4)' --eps 1,4")
    yield Command("bench-linf", f"{few} --attack '{ALL_ATTACKS}' --eps 1,4")
    yield Command("bench-l2", f"{few} --norm l2 --attack '{ALL_ATTACKS}' --eps 0.1,0.5")
    reference = "'apgd-ce(iterations=4),square(queries=6)'"
    yield Command("bench-reference", f"{few} --engine reference --attack {reference} --eps 1,4")
    yield Command("bench-recipes", f"{few} --attack recipe.toml,recipe.yaml,none --eps 2 --seed 3")
    yield Command("bench-native", f"{few} --resolution native --attack pgd-2 --eps 4")
    yield Command(
        "bench-quantize",
        f"{few} --quantize --attack 'apgd-ce(iterations=3)' --eps 2 --logit-scale 100 --templates single",
    )
    yield Command(
        "bench-text",
        f"{few} --templates prompts.txt --attack pgd-2 --eps 2 --class-names tecoa --resize crop256 --decode plain",
    )
    protocol = "--protocol tecoa --attack 'pgd-2(step_size=1)'"
    yield Command("bench-protocol", f"bench {FOOD} {protocol} -n 3 --no-store --no-probes --out protocol")
    yield Command(
        "bench-folder",
        "bench -d pictures --classes 'disc,box' --attack pgd-2 --eps 4 --no-store --no-probes --out folder",
    )
    yield Command("bench-mine", "bench -d mine.toml --attack fgsm --eps 1 --no-store --no-probes --out mine")
    two = "-m tiny -m 'tiny#normalization=imagenet'"
    yield Command("bench-two", f"bench {two} {FOOD} -n 3 --attack fgsm --eps 1,8 --no-store --no-probes --out two")


def _store() -> Iterator[Command]:
    yield Command("store-ls", "store ls --store store")
    yield Command("store-ls-json", "store ls --store store --format json")
    yield Command("store-verify", "store verify --store store --format json")
    yield Command("store-export-csv", "store export --store store --out store.csv")
    yield Command("store-export-parquet", "store export --store store --out store.parquet")
    yield Command("store-gc", f"store gc --store store {ANIMALS}")
    yield Command("store-gc-yes", f"store gc --store store {ANIMALS} --yes")
    yield Command("store-damaged", "store verify --store store", damage_a_segment)
    yield Command("store-damaged-gc", "store gc --store store --damaged --yes")


def _images() -> Iterator[Command]:
    yield Command("attack", f"attack {FOOD} -n 3 --attack 'apgd-ce(iterations=4)' --eps 4 --out look")
    photo = "attack photo.png --classes names.txt --attack pgd-3"
    yield Command("attack-photo", f"{photo} --eps 2 --out photo-adv --format json")
    yield Command("attack-l2", f"{photo} --label tree --norm l2 --eps 0.5 --quantize --out photo-l2")


def _training() -> Iterator[Command]:
    small = "--steps 4 --batch-size 4 --attack-steps 2 -n 30 --eval-samples 4 --eval-every 2 --val-fraction 0.2"
    yield Command("finetune-tima", f"finetune --method tima {ANIMALS} {small} --seed 1 --templates single --out tima")
    short = small.replace("--steps 4", "--steps 2").replace("--eval-every 2", "--no-evaluation")
    encoder = "--method 'tima(text=encoder,margin=0.05)' --ema 0.9 --grad-clip 1 --accumulate 2"
    yield Command("finetune-encoder", f"finetune {encoder} {ANIMALS} {short} --templates single --out encoder")
    tecoa = "--method tecoa --templates single --lora 2 --wise-ft 0.7"
    yield Command("finetune-tecoa", f"finetune {tecoa} {FOOD} {short} --out tecoa")
    yield Command("finetune-fare", "finetune --config tune.yaml --train last-1 --out fare --format json")
    yield Command("finetune-resume", "finetune --resume fare")
    yield Command("merge", "merge tiny local-dir:tima --alpha 0.25 --out merged")
    yield Command("convert", "convert local-dir:tecoa --out converted")
    yield Command("convert-file", "convert tima/open_clip_model.safetensors --out from-file")
    yield Command("convert-hf", "convert local-dir:vit --to hf --out as-hf")
    yield Command(
        "bench-vit",
        f"bench -m local-dir:as-hf -m local-dir:vit {FOOD} -n 3 --attack fgsm --eps 1 --no-store --no-probes -f md",
    )
    yield Command("inspect", "inspect local-dir:tima")
    yield Command("inspect-hf", "inspect local-dir:as-hf")
    yield Command("inspect-json", "inspect fare/open_clip_model.safetensors --format json")
    tuned = f"bench -m local-dir:tima {ANIMALS} -n 4 --attack pgd-2 --eps 4 --no-store --no-probes --format csv"
    yield Command("bench-tuned", f"{tuned} --out tuned")
    yield Command("bench-tuned-original", f"{tuned} --text original --precision float32 --out tuned-original")


def _looking() -> Iterator[Command]:
    yield Command("compare", "compare food food-more --force --junit compare.xml --github")
    model = "compare food local-dir:fare --store store --no-probes"
    yield Command("compare-model", f"{model} --format json --max-drop 0 --fail-on any-drop")
    blind = "'tiny#normalization=imagenet'"
    two = f"compare tiny {blind} {FOOD} --attack fgsm --eps 1 --no-store --no-probes"
    yield Command("compare-models", f"{two} -n 8 --format md --fail-on inconclusive")
    worse = two.replace(blind, "local-dir:vit")
    yield Command("compare-sequential", f"{worse} -n 24 --sequential --first 8 --max-drop 9")
    yield Command("report", "report two look --gallery 2 --title Golden")
    yield Command("report-md", "report food --format md --out pages/report.md")
    yield Command("doctor", f"doctor -m local-dir:vit {FOOD} -n 8 --attack pgd-3 --transfer-from local-dir:as-hf")
    yield Command("doctor-json", f"doctor {FOOD} -n 1 --attack pgd-2 --norm l2 --eps 2 --format json")
