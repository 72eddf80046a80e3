"""`clipguard list`: what can be named."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clipguard.benchmark.plan import BenchPlan
from clipguard.cli.console.flags import in_flags
from clipguard.cli.console.terminal import echo
from clipguard.core.errors import ClipguardError
from clipguard.core.settings import settings_of

EXAMPLES = """
**Examples**

`clipguard list datasets`

`clipguard list datasets --check --data-root /data` — can they be opened here? Exit code 1 if one cannot

`clipguard list protocols`

`clipguard list models | grep ViT-B-32`
"""


class What(str, Enum):
    """What to list."""

    models = "models"
    datasets = "datasets"
    attacks = "attacks"
    methods = "methods"
    defenses = "defenses"
    protocols = "protocols"


def show(
    what: Annotated[What, typer.Argument(help="models, datasets, attacks, methods, defenses or protocols")],
    check: Annotated[
        bool, typer.Option("--check", help="datasets: say which can be opened here, and what is missing.")
    ] = False,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help=settings_of(BenchPlan)["data_root"].full_help)
    ] = None,
) -> None:
    """List the models, data sets, attacks, fine-tuning methods, defences or protocols that can be named."""
    if (check or data_root) and what is not What.datasets:
        raise ClipguardError("--check and --data-root are for `clipguard list datasets`; leave them out.")
    if data_root and not check:
        raise ClipguardError("--data-root is for --check here; add it.")
    if check:
        _check_datasets(data_root)
        return
    lists = {What.models: _models, What.datasets: _datasets, What.attacks: _attacks, What.methods: _methods}
    (lists | {What.protocols: _protocols, What.defenses: _defenses})[what]()


def _protocols() -> None:
    from clipguard.benchmark.protocols import PROTOCOLS

    for name, protocol in PROTOCOLS.items():
        echo(f"{name:<10} {protocol.summary}")
    echo("\nWhat each sets, and what its papers printed: docs/protocols.md")


def _check_datasets(data_root: Path | None) -> None:
    from clipguard.cli import app
    from clipguard.data.availability import check_registry

    found = list(check_registry(data_root))
    for a in found:
        echo(f"{'ok' if a.available else 'MISSING':<8} {a.name:<16} {in_flags(a.where, app)}")
    missing = sum(not a.available for a in found)
    echo(f"\n{len(found) - missing} of {len(found)} named data sets can be opened here, and the embedded ones")
    if missing:
        raise typer.Exit(1)


def _methods() -> None:
    from dataclasses import fields

    from clipguard.finetuning.methods.registry import METHODS

    for name, kind in METHODS.items():
        presets = f" [--preset {', '.join(kind.presets)}]" if kind.presets else ""
        echo(f"{name:<16} {kind.summary}{presets}")
    echo("\nOptions, as in --method 'tima(margin=0.05,text=encoder)', and their defaults; where there is no value, the")
    echo("default depends on others (docs/methods.md):")
    for name, kind in METHODS.items():
        shown = ((f.name, f.default) for f in fields(kind))
        defaults = ", ".join(option if value in (None, "") else f"{option}={value}" for option, value in shown)
        echo(f"{name:<16} {defaults or 'none'}")


def _defenses() -> None:
    from dataclasses import fields

    from clipguard.defenses.registry import DEFENSES

    for name, kind in DEFENSES.items():
        echo(f"{name:<16} {kind.summary}{', random' if kind.random else ''}")
    echo("\nOptions, as in --defense 'jpeg(quality=50)', and their defaults:")
    for name, kind in DEFENSES.items():
        defaults = ", ".join(f"{field.name}={field.default}" for field in fields(kind))
        echo(f"{name:<16} {defaults or 'none'}")
    echo("\nor several, which an image meets in that order: jpeg+ttc")


def _attacks() -> None:
    from clipguard.attacks.registry import ATTACKS, summaries

    for name, summary in summaries().items():
        echo(f"{name:<16} {summary}")
    echo("\nOptions, as in --attack 'apgd-ce(iterations=50,restarts=2)', and their defaults:")
    for name, kind in ATTACKS.items():
        stepped = kind.steps_in_name
        defaults = ", ".join(f"{k}={v}" for k, v in kind().options().items() if not stepped or k != "iterations")
        echo(f"{name + '-K' if stepped else name:<16} {defaults or 'none'}")
    echo("every attack     eot=1: forward passes averaged an evaluation, for randomised models")
    echo("\nor several, each for the images that the ones before left standing: apgd-ce(restarts=5)+square")
    echo('or a recipe file, FILE.toml or FILE.yaml: stages = ["apgd-ce(restarts=5)", "square"]')


def _datasets() -> None:
    from clipguard.data import list_datasets
    from clipguard.data.registry import groups, registry

    for d in list_datasets():
        echo(
            f"{d.name:<16} {d.classes:>4} classes {d.test:>7} images  embedded: {d.description}; {d.train} to train on"
        )
    echo()
    for e in registry().values():
        notes = f" ({e.notes})" if e.notes else ""
        echo(f"{e.name:<16} {e.classes or '?':>4} classes {e.size or '?':>7} images  {e.source or 'a copy'}{notes}")
    echo("\nCopies of these in DIR/<name> are used first: --data-root DIR, or CLIPGUARD_DATA=DIR. Groups:")
    for name, members in groups().items():
        echo(f"{name:<16} {', '.join(members)}")
    echo(
        "\nor a path: file.parquet, a folder of parquet or arrow files, class/image.jpg folders, webdataset .tar files;"
        "\nor hf:ORG/NAME[@SPLIT], or wds:ORG/NAME for web datasets, from the Hugging Face hub;"
        "\nor FILE.toml, which describes a set of your own (docs/datasets.md)"
    )


def _models() -> None:
    from clipguard.models import list_models
    from clipguard.models.sources.published import published_models

    for name in list_models():
        echo(name)
    echo("\nRobust checkpoints that others published, and how their numbers came about (docs/checkpoints.md):")
    for entry in published_models():
        echo(f"{entry.name:<24} {entry.method}, {entry.architecture}, eps {entry.eps}; {entry.source}")
        echo(f"{'':<24} trained on {entry.trained_on}; {entry.paper}")
        echo(f"{'':<24} reported: {entry.results or 'see the paper'}; {entry.evaluated}")
        if entry.unverified:
            echo(f"{'':<24} not verified: {', '.join(entry.unverified)}")
    echo("\nor FILE, ARCH:FILE, FILE@BASE, hf-hub:ORG/REPO, local-dir:FOLDER")
