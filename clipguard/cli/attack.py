"""`clipguard attack`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipguard.benchmark.plan import DEFAULT_ATTACK
from clipguard.cli import options
from clipguard.cli.console.terminal import echo_data
from clipguard.cli.options import one, parse_batch_size, parse_n_samples, split_attacks
from clipguard.core.errors import ClipguardError

if TYPE_CHECKING:
    from clipguard.adversarial.image_files import ImageFiles
    from clipguard.adversarial.result import AdversarialResult
    from clipguard.benchmark.plan import BenchPlan
    from clipguard.core.output import OutputFolder

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
            "--model",
            "-m",
            help="tiny, ARCH:TAG, FILE, ARCH:FILE, FILE@BASE, hf-hub:ORG/REPO, local-dir:FOLDER or a name of "
            "`list models`. Default: tiny.",
        ),
    ] = None,
    base: options.Base = None,
    normalization: options.Normalization = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A name of `list datasets`, a .parquet or .tar file, a folder, hf:ORG/NAME[@SPLIT], or a .toml file. "
            f"Default: {DEFAULT_DATASET}.",
        ),
    ] = None,
    classes: options.Classes = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Class of the image files: one for all, or one each. Default: what the model says."),
    ] = None,
    protocol: options.Protocol = None,
    data_root: options.DataRoot = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Budget: in units of 1/255 for linf, plain for l2. Default: the protocol's largest, else 4, or 0.5 "
            "for l2."
        ),
    ] = None,
    norm: options.Norm = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            "-a",
            help="As `clipguard list attacks` shows, or a recipe file. Default: the protocol's last, else "
            f"{DEFAULT_ATTACK}.",
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
    templates: options.Templates = None,
    class_names: options.ClassNames = None,
    duplicate_names: options.DuplicateNames = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    resolution: options.Resolution = None,
    resize: options.Resize = None,
    decode: options.Decode = None,
    logit_scale: options.LogitScale = None,
    quantize: options.Quantize = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    compiled: options.Compile = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the files. Default: runs/TIME-attack-NAME.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the default folder. Default: the model's.")] = None,
    output_format: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.table,
) -> None:
    """Make adversarial images and show them: what changed, what the model says before and after, what broke it."""
    from clipguard.benchmark.protocols import make_plan
    from clipguard.models.source import add_to_files

    for_data_sets = {"--dataset": dataset, "--n-samples": n_samples, "--split": split, "--data-root": data_root}
    for_data_sets |= {"--image-column": image_column, "--label-column": label_column, "--class-names": class_names}
    files = _image_files(images, classes, label or [], for_data_sets)
    settings = options.given(
        norm=norm,
        templates=templates,
        class_names=class_names,
        duplicate_names=duplicate_names,
        resolution=resolution,
        resize=resize,
        decode=decode,
        logit_scale=logit_scale,
        precision=precision,
    )
    plan = make_plan(
        add_to_files([one("attack", "--model", model, DEFAULT_MODEL)], base, normalization),
        [files.name if files else one("attack", "--dataset", dataset, DEFAULT_DATASET)],
        protocol=protocol,
        **settings,
        **_one_attack(protocol, split_attacks(attack or []), eps, norm or "linf"),
        n_samples=parse_n_samples(n_samples or DEFAULT_N),
        seed=seed,
        batch_size=parse_batch_size(batch_size),
        quantize=quantize,
        device=device,
        compile=compiled,
        split=split,
        classes=classes if not files else None,
        image_column=image_column,
        label_column=label_column,
        data_root=data_root,
    )
    if len(plan.datasets) > 1:
        raise ClipguardError(
            f"--dataset names a group ({', '.join(plan.datasets)}); `clipguard attack` takes one of it."
        )
    from clipguard.core.output import OutputFolder

    plan.check()
    named = name or plan.models[0]
    with OutputFolder(out, whole=True) if out else OutputFolder.by_default(named, "attack-", whole=True) as folder:
        result = _run(plan, files, folder)
    if output_format is Format.json:
        echo_data(result.to_json())
    else:
        from clipguard.cli.console.render import print_images

        print_images(result)
    log.info("Written to %s in %.0f s; look at %s", folder.path, result.run["wall_seconds"], folder.path / "grid.png")


def _run(plan: BenchPlan, files: ImageFiles | None, folder: OutputFolder) -> AdversarialResult:
    from clipguard.adversarial.generate import attack_images
    from clipguard.cli.console.progress import RichProgress

    with RichProgress() as progress:
        result = attack_images(plan, files, progress)
    folder.write_files(result.files(_grid(result, plan)))
    return result


def _one_attack(protocol: str | None, attacks: list[str], eps: list[str] | None, norm: str) -> dict[str, Any]:
    """The attack and the budget: those given, else the last attack and the largest eps of the protocol."""
    from clipguard.benchmark.protocols import find_protocol
    from clipguard.core.eps import parse_eps

    default_eps, default_attack = DEFAULT_EPS.get(norm, ""), DEFAULT_ATTACK
    if protocol is not None:
        family = find_protocol(protocol)
        default_attack = family.attacks[-1]
        default_eps = f"{max(family.eps):g}" if norm == family.norm else default_eps
    radii = parse_eps(eps or [default_eps], norm)
    if len(radii) != 1:
        typed = ", ".join(f"{r.typed:g}" for r in radii)
        raise ClipguardError(
            f"--eps names {len(radii)} budgets ({typed}); `clipguard attack` takes one, as in --eps 4."
        )
    return {"attacks": (one("attack", "--attack", attacks, default_attack),), "eps": eps or [default_eps]}


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
    from clipguard.adversarial.image_files import ImageFiles

    return ImageFiles(tuple(images), classes, tuple(labels))


def _grid(result: AdversarialResult, plan: BenchPlan) -> bytes:
    from clipguard.figures.grid import MOST, Caption, Triple, draw_grid

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
