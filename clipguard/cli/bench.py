"""`clipguard bench`."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipguard.benchmark.plan import DEFAULT_ATTACK, ENGINES
from clipguard.cli import options
from clipguard.cli.console.terminal import echo_data
from clipguard.cli.options import parse_batch_size, parse_n_samples, split_attacks

if TYPE_CHECKING:
    from clipguard.benchmark.plan import BenchPlan
    from clipguard.benchmark.results.folder import ResultFolder
    from clipguard.benchmark.results.result import BenchResult

EXAMPLES = """
**Examples**

`clipguard bench` — the embedded model on the embedded data sets

`clipguard bench --model ViT-B-32-quickgelu:openai --dataset photos/ --eps 1,4`

`clipguard bench -m ViT-B-32:tuned.pt -m tiny -d test.parquet --attack pgd-10,autoattack --n-samples all`

`clipguard bench -m hf-hub:chs20/fare2-clip --protocol fare --data-root /data` — the field's 13 sets, as FARE does it

`clipguard bench --norm l2 --eps 0.5,1 --format json > results.json`
"""
log = logging.getLogger("clipguard")


class Format(str, Enum):
    """What goes to stdout."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


class EpsMode(str, Enum):
    """How an image's radii depend on one another."""

    ascending = "ascending"
    independent = "independent"
    nested = "nested"


class Text(str, Enum):
    """Which text scores a model whose text clipguard tuned."""

    tuned = "tuned"
    original = "original"


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="tiny, ARCH:TAG, FILE, ARCH:FILE, FILE@BASE, hf-hub:ORG/REPO, local-dir:FOLDER or a name of "
            "`list models`; repeatable. Default: tiny.",
        ),
    ] = None,
    base: options.Base = None,
    normalization: options.Normalization = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A name or group of `list datasets`, a .parquet or .tar file, a folder, hf:ORG/NAME[@SPLIT], or a "
            ".toml file that describes a set; repeatable. Default: the protocol's, else all embedded sets.",
        ),
    ] = None,
    protocol: options.Protocol = None,
    data_root: options.DataRoot = None,
    eps: options.Eps = None,
    norm: options.Norm = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            "-a",
            help="As `clipguard list attacks` shows, comma-separated, or a .toml or .yaml recipe file. "
            f"Default: {DEFAULT_ATTACK}.",
        ),
    ] = None,
    n_samples: Annotated[
        str | None,
        typer.Option(
            "--n-samples", "-n", help="Images a data set: a seeded, class-stratified subset, or all. Default: 200."
        ),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = "auto",
    templates: options.Templates = None,
    class_names: options.ClassNames = None,
    duplicate_names: options.DuplicateNames = None,
    text: Annotated[
        Text, typer.Option(help="original: score models that clipguard tuned with the text they had before.")
    ] = Text.tuned,
    split: options.Split = None,
    classes: options.Classes = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    resolution: options.Resolution = None,
    resize: options.Resize = None,
    decode: options.Decode = None,
    logit_scale: options.LogitScale = None,
    quantize: options.Quantize = False,
    eps_mode: Annotated[
        EpsMode,
        typer.Option(
            "--eps-mode",
            help="ascending: broken at a smaller eps is broken at a larger; independent: attack at each; nested: "
            "largest first, survivors only confirmed below (faster, labelled).",
        ),
    ] = EpsMode.ascending,
    engine: Annotated[
        str, typer.Option(help="clipguard, or reference: the same attacks through the AutoAttack library.")
    ] = ENGINES[0],
    device: options.Device = "auto",
    precision: options.Precision = None,
    compiled: options.Compile = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the files. Default: runs/TIME-NAME.")
    ] = None,
    store: options.Store = options.DEFAULT_STORE,
    no_store: options.NoStore = False,
    probes: options.Probes = True,
    name: Annotated[str | None, typer.Option(help="Name in the default folder. Default: the first model's.")] = None,
    output_format: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.table,
) -> None:
    """Measure clean and robust accuracy of CLIP models, with intervals, and write every image's outcome."""
    from clipguard.benchmark.protocols import make_plan
    from clipguard.benchmark.results.folder import ResultFolder
    from clipguard.models.source import add_to_files

    settings = options.given(
        eps=eps,
        norm=norm,
        attacks=tuple(split_attacks(attack)) if attack else None,
        templates=templates,
        class_names=class_names,
        duplicate_names=duplicate_names,
        resolution=resolution,
        resize=resize,
        decode=decode,
        logit_scale=logit_scale,
        precision=precision,
    )
    if n_samples is not None:
        settings["n_samples"] = parse_n_samples(n_samples)
    plan = make_plan(
        add_to_files(model or ["tiny"], base, normalization),
        dataset or (),
        protocol=protocol,
        **settings,
        seed=seed,
        batch_size=parse_batch_size(batch_size),
        quantize=quantize,
        eps_mode=eps_mode.value,
        engine=engine,
        device=device,
        compile=compiled,
        text=text.value,
        split=split,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
        data_root=data_root,
    )
    plan.check()
    # Without a store, a run that is started again would lose the finished cells of the interrupted one.
    known = None if no_store else plan
    named = name or plan.models[0]
    with ResultFolder(out, plan=known) if out else ResultFolder.by_default(named, plan=known) as folder:
        _run(plan, folder, None if no_store else store, output_format, probes)


def _run(plan: BenchPlan, folder: ResultFolder, store: Path | None, output_format: Format, probes: bool) -> None:
    from clipguard.benchmark.results.result import BenchResult
    from clipguard.benchmark.runner import bench as run_bench
    from clipguard.cli.console.progress import RichProgress
    from clipguard.store.store import Store

    result = BenchResult({})
    kept = Store(store) if store else None
    try:
        with RichProgress() as progress:
            run_bench(plan, result, progress, kept, probes=probes)
    except KeyboardInterrupt:
        if kept and result.run:
            log.info("What is done is kept in %s: the same command goes on from there.", store)
        raise
    finally:
        # Also after Ctrl-C, or an error in a later cell: what is finished is kept.
        if result.cells:
            _deliver(result, folder, output_format)


def _deliver(result: BenchResult, folder: ResultFolder, output_format: Format) -> None:
    from clipguard.benchmark.results.table import to_markdown
    from clipguard.cli.console.render import print_table
    from clipguard.sanity.checks import CHECKS
    from clipguard.sanity.entries import alarms
    from clipguard.sanity.predictions import PREDICTION_CHECKS

    markdown = to_markdown(result)
    folder.write(result, markdown)
    if output_format is Format.table:
        print_table(result)
    elif output_format is Format.json:
        echo_data(result.to_json())
    elif output_format is Format.csv:
        echo_data(result.to_frame().to_csv(index=False))
    else:
        echo_data(markdown)
    if output_format in (Format.json, Format.csv):  # tables say it themselves
        for line in alarms(result.run.get("findings", []), CHECKS.keys() - set(PREDICTION_CHECKS)):  # said already
            log.warning(line)
    state = "" if result.run["complete"] else " (interrupted: finished cells only)"
    log.info("Written to %s in %.0f s%s", folder.path, result.run["wall_seconds"], state)
