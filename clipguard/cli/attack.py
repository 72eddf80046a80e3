"""`clipguard attack`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipguard.benchmark.plan import DEFAULT_ATTACK, RESOLUTIONS
from clipguard.cli import options
from clipguard.cli.options import default_folder, parse_batch_size, parse_n_samples, split_attacks
from clipguard.errors import ClipguardError

if TYPE_CHECKING:
    from clipguard.benchmark.adversarial import AdversarialResult
    from clipguard.benchmark.image_files import ImageFiles
    from clipguard.benchmark.plan import BenchPlan, Radius

EXAMPLES = """
**Examples**

`clipguard attack` — the embedded model on 16 embedded images

`clipguard attack --model ViT-B-32-quickgelu:openai --dataset photos/ --eps 2 --n-samples 32 --out look`

`clipguard attack photo.jpg --classes "cat,dog,bird" --quantize` — one image, and an attack that survives as a PNG

`clipguard attack a.jpg b.jpg --classes names.txt --label "tabby cat" --attack pgd-50 --norm l2 --eps 0.5`

**Files**

`adversarial.safetensors` (x_adv and clean in float32, indices, labels), `png/` (rounded to 8 bits), `samples.parquet`
(a row an image), `grid.png` (the picture to look at) and `run.json` (everything said here, and where it came from).
"""
DEFAULT_MODEL, DEFAULT_DATASET, DEFAULT_N = "tiny", "emoji-animals", "16"
DEFAULT_EPS = {"linf": "4", "l2": "0.5"}
log = logging.getLogger("clipguard")


class Format(str, Enum):
    """What goes to stdout."""

    table = "table"
    json = "json"


def attack(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, instead of --dataset; they need --classes.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="tiny, ARCH:TAG, ARCH:FILE, hf-hub:ORG/REPO or local-dir:FOLDER. Default: tiny."
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            help="An embedded name, a .parquet or .tar file, a folder, or hf:ORG/NAME[@SPLIT]. "
            f"Default: {DEFAULT_DATASET}.",
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names between commas, or a file with one a line or a JSON list.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Class of the image files: one for all, or one each. Default: what the model says."),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(help="Budget: in units of 1/255 for linf, plain for l2. Default: 4, or 0.5 for l2."),
    ] = None,
    norm: options.Norm = "linf",
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack", "-a", help=f"As `clipguard list attacks` shows, or a recipe file. Default: {DEFAULT_ATTACK}."
        ),
    ] = None,
    n_samples: Annotated[
        str | None,
        typer.Option(
            "--n-samples", "-n", help=f"A seeded, class-stratified subset of so many, or all. Default: {DEFAULT_N}."
        ),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = "auto",
    templates: options.Templates = "ensemble",
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    resolution: options.Resolution = RESOLUTIONS[0],
    quantize: options.Quantize = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compiled: options.Compile = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the files. Default: runs/TIME-attack-NAME.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the default folder. Default: the model's.")] = None,
    output_format: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.table,
) -> None:
    """Make adversarial images and show them: what changed, what the model says before and after, what broke it."""
    from clipguard.benchmark.plan import BenchPlan

    for_data_sets = {"--dataset": dataset, "--n-samples": n_samples, "--split": split}
    for_data_sets |= {"--image-column": image_column, "--label-column": label_column}
    files = _image_files(images, classes, label or [], for_data_sets)
    plan = BenchPlan(
        models=(_one("--model", model, DEFAULT_MODEL),),
        datasets=(files.name if files else _one("--dataset", dataset, DEFAULT_DATASET),),
        eps=(_radius(eps, norm),),
        attacks=(_one("--attack", split_attacks(attack or []), DEFAULT_ATTACK),),
        norm=norm,  # type: ignore[arg-type]  # _radius has refused any other
        n_samples=parse_n_samples(n_samples or DEFAULT_N),
        seed=seed,
        batch_size=parse_batch_size(batch_size),
        resolution=resolution,  # type: ignore[arg-type]  # checked by the plan
        quantize=quantize,
        device=device,
        precision=precision,  # type: ignore[arg-type]  # checked by the plan
        compile=compiled,
        templates=templates,
        split=split,
        classes=Path(classes) if classes and not files else None,
        image_column=image_column,
        label_column=label_column,
    )
    _run(plan, files, out or default_folder(name or plan.models[0], "attack-"), output_format)


def _run(plan: BenchPlan, files: ImageFiles | None, out: Path, output_format: Format) -> None:
    from clipguard.benchmark.results import OutputFolder

    plan.check()
    folder = OutputFolder(out)
    from clipguard.benchmark.attack import attack_images
    from clipguard.cli.progress import RichProgress
    from clipguard.cli.render import print_images

    with RichProgress() as progress:
        result = attack_images(plan, files, progress)
    folder.write_files(result.files(_grid(result, plan)))
    if output_format is Format.json:
        typer.echo(result.to_json())
    else:
        print_images(result)
    log.info("Written to %s in %.0f s; look at %s", folder.path, result.run["wall_seconds"], folder.path / "grid.png")


def _one(option: str, values: list[str] | None, default: str) -> str:
    """The one value of an option that must not be repeated."""
    if values and len(values) > 1:
        raise ClipguardError(
            f"{option} names {len(values)} things; `clipguard attack` takes one, `clipguard bench` several."
        )
    return values[0] if values else default


def _radius(values: list[str] | None, norm: str) -> Radius:
    from clipguard.benchmark.plan import parse_eps

    radii = parse_eps(values or [DEFAULT_EPS.get(norm, "")], norm)
    if len(radii) != 1:
        typed = ", ".join(f"{r.typed:g}" for r in radii)
        raise ClipguardError(
            f"--eps names {len(radii)} budgets ({typed}); `clipguard attack` takes one, as in --eps 4."
        )
    return radii[0]


def _image_files(
    images: list[Path] | None, classes: str | None, labels: list[str], for_data_sets: Mapping[str, object]
) -> ImageFiles | None:
    """The files named as arguments, if any. Raises ClipguardError for options that contradict them."""
    if not images:
        if labels:
            raise ClipguardError("--label is for image files; a data set has labels of its own. Leave one of them out.")
        return None
    for option, value in for_data_sets.items():
        if value:
            raise ClipguardError(f"{option} is for data sets, and image files are given. Leave one of them out.")
    if classes is None:
        raise ClipguardError(f'{images[0]} needs the names to choose from: add --classes "cat,dog,bird", or a file.')
    from clipguard.benchmark.image_files import ImageFiles, parse_classes

    return ImageFiles(tuple(images), parse_classes(classes), tuple(labels))


def _grid(result: AdversarialResult, plan: BenchPlan) -> bytes:
    from clipguard.report.grid import MOST, Caption, Triple, draw_grid

    names = result.class_names

    def triple(number: int) -> Triple:
        image = result.images[number]
        clean, x_adv = (x.permute(1, 2, 0).numpy() for x in (image.clean, image.x_adv))
        before, after = (
            Caption(names[o.prediction], o.confidence, o.prediction == image.label) for o in (image.before, image.after)
        )
        title = f"#{image.index}  {names[image.label]}"
        return Triple(title, clean, x_adv, before, after, image.row["broken_by"])

    if len(result.images) > MOST:
        log.info("grid.png shows the first %d of %d images; all are in png/", MOST, len(result.images))
    budget = f"{plan.norm} eps {plan.eps[0].typed:g}{'/255' if plan.norm == 'linf' else ''}"
    what = f"{plan.models[0]} on {plan.datasets[0]}: {plan.attacks[0]}, {budget}{', 8-bit' if plan.quantize else ''}"
    counts = result.summary()
    title = f"{what}; of {counts['n']}, {counts['clean_correct']} right when clean, {counts['robust']} when attacked"
    return draw_grid([triple(i) for i in range(min(MOST, len(result.images)))], title)
