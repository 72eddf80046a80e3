"""`clipguard bench`, and `clipguard plan`: what a bench run would take."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.planning.question import Question
from clipguard.cli.console.terminal import echo_data
from clipguard.cli.options import FILES_OF_MODELS, STORED, add_to_models, pop_settings, takes
from clipguard.core.errors import ClipguardError
from clipguard.core.settings import setting, settings_of

if TYPE_CHECKING:
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
PLAN_EXAMPLES = """
**Examples**

`clipguard plan` — what `clipguard bench` would take: passes, time, memory

`clipguard plan -m ViT-B-32:openai -d imagenet --attack autoattack --workers 8 --price 2.50` — and money, on eight GPUs

`clipguard plan -d photos/ --pilot 0 --format json > plan.json` — bounds alone, which attack no image

docs/planning.md says how it is reckoned.
"""
log = logging.getLogger("clipguard")


@dataclass(frozen=True)
class Delivery:
    """Where a result goes."""

    out: Path | None = setting(None, "New folder for the files.", letter="-o", default_help="runs/TIME-NAME")
    name: str | None = setting(None, "Name in the default folder.", default_help="the first model's")
    format: Literal["table", "json", "csv", "md"] = setting("table", "What stdout gets.", letter="-f")


@dataclass(frozen=True)
class Sharded:
    """How runs share out the work that share nothing but a store."""

    shard: str | None = setting(
        None,
        "Only compute part I of N of every cell into the store; without --shard the same command then makes the table "
        "(docs/cluster.md).",
        metavar="I/N",
    )


@dataclass(frozen=True)
class Planned:
    """Whether the run is only planned."""

    plan: bool = setting(False, "Only say what the run would take (docs/planning.md).")


@dataclass(frozen=True)
class Told:
    """How a plan is told."""

    format: Literal["table", "json"] = setting("table", "What stdout gets.", letter="-f")


QUESTION = settings_of(Question)
RUN = settings_of(BenchPlan) | FILES_OF_MODELS | STORED
HOW = STORED | settings_of(Sharded) | settings_of(Planned) | QUESTION | settings_of(Delivery)
SETTINGS = RUN | HOW
PLAN_SETTINGS = RUN | QUESTION | settings_of(Told)


@takes(SETTINGS)
def bench(given: dict[str, Any]) -> None:
    """Measure clean and robust accuracy of CLIP models, with intervals, and write every image's outcome."""
    from clipguard.benchmark.protocols import make_plan
    from clipguard.benchmark.results.folder import ResultFolder

    how = pop_settings(given, HOW)
    add_to_models(given)
    run = make_plan(**{"datasets": (), **given})
    run.check()
    if how["plan"]:
        _refuse(how, ("shard", "out", "name"), "`plan` is of a whole run and makes no result; leave out `{}`.")
        _tell_plan(run, how)
        return
    _refuse(how, QUESTION, "`{}` is for a plan; add `plan`, or leave it out.")
    if how["shard"] is not None:
        _fill(run, how)
        return
    # Without a store, a run that is started again would lose the finished cells of the interrupted one.
    known = run if how["store"] else None
    named, out = how["name"] or run.models[0], how["out"]
    with ResultFolder(out, plan=known) if out else ResultFolder.by_default(named, plan=known) as folder:
        _run(run, folder, how["store"], how["format"], how["probes"])


@takes(PLAN_SETTINGS)
def plan(given: dict[str, Any]) -> None:
    """Say what `clipguard bench` would take with the same options: passes, time, memory and money."""
    from clipguard.benchmark.protocols import make_plan

    how = pop_settings(given, STORED | QUESTION | settings_of(Told))
    add_to_models(given)
    _tell_plan(make_plan(**{"datasets": (), **given}), how)


def _tell_plan(plan: BenchPlan, how: dict[str, Any]) -> None:
    from clipguard.benchmark.planning.planner import plan_run
    from clipguard.cli.console.plan_table import print_estimate
    from clipguard.cli.console.progress import RichProgress
    from clipguard.store.store import Store

    if how["format"] not in ("table", "json"):
        raise ClipguardError(f"A plan is a table or json; leave out `format={how['format']}`.")
    store = Store(how["store"]) if how["store"] else None
    with RichProgress() as progress:
        question = Question(how["price"], how["pilot"])
        estimate = plan_run(plan, question, progress, store, probes=how["probes"])
    if how["format"] == "json":
        echo_data(estimate.to_json())
    else:
        print_estimate(estimate, kept=store is not None)


def _refuse(how: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Raises ClipguardError for the first of these that was given."""
    for name in names:
        if how[name] != HOW[name].default:
            raise ClipguardError(why.format(name))


def _run(plan: BenchPlan, folder: ResultFolder, store: str | None, output_format: str, probes: bool) -> None:
    from clipguard.benchmark.runner import BenchRun
    from clipguard.cli.console.progress import RichProgress
    from clipguard.store.store import Store

    progress = RichProgress()
    run = BenchRun(plan, progress, Store(store) if store else None, probes=probes)
    try:
        with progress:
            run.execute()
    except KeyboardInterrupt:
        if run.store and run.result:
            log.info("What is done is kept in %s: the same command goes on from there.", store)
        raise
    finally:
        # Also after Ctrl-C, or an error in a later cell: what is finished is kept.
        if run.result and run.result.cells:
            _deliver(run.result, folder, output_format)


def _fill(plan: BenchPlan, how: dict[str, Any]) -> None:
    """Compute a part of every cell into the store."""
    from clipguard.benchmark.runner import BenchRun
    from clipguard.benchmark.shard import Shard
    from clipguard.cli.console.progress import RichProgress
    from clipguard.store.store import Store

    shard = Shard.read(how["shard"])
    _refuse(how, ("out", "name", "format"), "A `shard` makes no table; leave out `{}`, or `shard`.")
    if how["store"] is None:
        raise ClipguardError("A `shard` leaves nothing but what it stores; it needs a `store`.")
    if plan.engine == "reference":
        raise ClipguardError("`engine=reference` draws random numbers for a batch as a whole; leave out `shard`.")
    with RichProgress() as progress:
        BenchRun(plan, progress, Store(how["store"]), shard=shard).execute()
    log.info("Part %s is in %s.", shard, how["store"])


def _deliver(result: BenchResult, folder: ResultFolder, output_format: str) -> None:
    from clipguard.benchmark.results.table import to_markdown
    from clipguard.cli.console.render import print_table
    from clipguard.sanity.checks import CHECKS
    from clipguard.sanity.entries import alarms
    from clipguard.sanity.predictions import PREDICTION_CHECKS

    markdown = to_markdown(result)
    folder.write(result, markdown)
    if output_format == "table":
        print_table(result)
    elif output_format == "json":
        echo_data(result.to_json())
    elif output_format == "csv":
        echo_data(result.to_frame().to_csv(index=False))
    else:
        echo_data(markdown)
    if output_format in ("json", "csv"):  # tables say it themselves
        for line in alarms(result.run.get("findings", []), CHECKS.keys() - set(PREDICTION_CHECKS)):  # said already
            log.warning(line)
    state = "" if result.run["complete"] else " (interrupted: finished cells only)"
    log.info("Written to %s in %.0f s%s", folder.path, result.run["wall_seconds"], state)
