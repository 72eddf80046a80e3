"""A stored run once more: its command line, and the adversarial images of some of its rows."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np

from clipguard.adversarial.generate import attack_task
from clipguard.adversarial.result import AdversarialImage
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.task import Task, open_task
from clipguard.core.device import choose_device
from clipguard.core.eps import eps_of_numbers, spell_eps
from clipguard.core.errors import ClipguardError, ResultError
from clipguard.core.progress import Progress, Silent
from clipguard.core.spec import split_attacks
from clipguard.models.loading import LoadedModel, load_model

FLAGS = ("quantize", "compile", "duplicate_names")
NO_OPTION = ("models", "datasets", "protocol", "overrides", "part")  # written already, or not at all
UNSET = {"n_samples": "all", "batch_size": "auto"}  # how None is typed, where it can be
SHORT = {"datasets": "dataset", "attacks": "attack"}  # fields whose options have other names


@dataclass(frozen=True)
class Wanted:
    """A row of a run whose image is wanted; `eps` as typed, `prediction` what the run said under attack."""

    model: str
    dataset: str
    attack: str
    eps: float
    index: int
    prediction: int


@dataclass(frozen=True)
class Rerun:
    """How to get a run again: the `clipguard bench` command line, and what it leaves out or why there is none."""

    command: str
    note: str = ""


def rerun(run: Mapping[str, Any]) -> Rerun:
    """The command line that makes the plan of a run again (`BenchResult.run`)."""
    if "plan" not in run:
        return Rerun("", "It is of an older clipguard, which did not keep its command line.")
    try:
        plan = BenchPlan.from_dict(run["plan"], list(run["models"]))
        defaults = make_plan(plan.models, plan.datasets, protocol=plan.protocol)
        of_norm = make_plan(plan.models, plan.datasets, protocol=plan.protocol, norm=plan.norm)
    except ClipguardError as error:
        return Rerun("", f"No command line: {error}")
    words = ["clipguard", "bench"]
    words += [word for name in plan.models for word in ("--model", name)]
    words += [word for name in plan.datasets for word in ("--dataset", name)]
    words += [] if plan.protocol is None else ["--protocol", plan.protocol]
    words += [] if run.get("probes", True) else ["--no-probes"]
    impossible = []
    for field in fields(BenchPlan):
        value, default = getattr(plan, field.name), getattr(of_norm if field.name == "eps" else defaults, field.name)
        if field.name in NO_OPTION or value == default:
            continue
        option = _option(field.name, value, plan)
        words += option or []
        impossible += [] if option else [f"{field.name} {value}"]
    if impossible:
        return Rerun("", f"No command line, since no option gives {' and '.join(impossible)}: it was made in Python.")
    return Rerun(shlex.join(words), _part(plan))


def _option(name: str, value: Any, plan: BenchPlan) -> list[str] | None:
    """How a field is written on the command line; None if it cannot be."""
    option = f"--{SHORT.get(name, name).replace('_', '-')}"
    if name in FLAGS:
        return [option] if value else None
    if name == "eps":
        return [option, ",".join(spell_eps(radius.typed, plan.norm) for radius in value)]
    if name == "attacks":
        typed = ",".join(value)
        return [option, typed] if split_attacks([typed]) == list(value) else None
    if value is None:
        return [option, UNSET[name]] if name in UNSET else None
    return [option, str(value)]


def _part(plan: BenchPlan) -> str:
    if plan.part is None:
        return ""
    first, end = plan.part
    return (
        f"The run is of images {first} to {end - 1} in a seeded random order, as `compare --sequential` takes them; no "
        "option of `bench` asks for these alone. The command measures all, these among the others."
    )


def attack_again(
    run: Mapping[str, Any], wanted: Sequence[Wanted], progress: Progress | None = None
) -> Iterator[tuple[Wanted, AdversarialImage | str]]:
    """Attack images of a run again, as it did: an image's outcome depends on no other image and no other eps.

    Gives each with its image, or with the reason why there is none: another weight file or other data than then, a
    model or data set that is not there any more, or an attack that does not succeed on this machine.
    """
    progress = progress or Silent()
    by_model = sorted(wanted, key=lambda w: (w.model, w.dataset, w.attack, w.eps, w.index))
    for name, of_model in groupby(by_model, key=lambda w: w.model):
        rows = list(of_model)
        try:
            plan, model = _open_model(run, name)
        except ClipguardError as error:
            yield from ((w, str(error)) for w in rows)
            continue
        for dataset, of_dataset in groupby(rows, key=lambda w: w.dataset):
            yield from _on_dataset(run, plan, model, dataset, list(of_dataset), progress)


def _open_model(run: Mapping[str, Any], name: str) -> tuple[BenchPlan, LoadedModel]:
    if "plan" not in run:
        raise ResultError("The run is of an older clipguard, which did not keep its plan")
    if run["engine"] != "clipguard" or run["eps_mode"] == "nested":
        raise ResultError("With --engine reference and --eps-mode nested, an image's outcome depends on the others")
    settings = {**run["plan"], "device": "auto", "precision": run["precision"], "compile": False, "batch_size": None}
    plan = BenchPlan.from_dict(settings, [name])
    model = load_model(name, device=choose_device(plan.device), text=plan.text)
    then, now = run["models"][name], model.info.to_dict()
    if any(then.get(key) != now[key] for key in ("sha256", "base_sha256", "text_sha256")):
        raise ResultError(f"The weights of {name} are not those of the run (another SHA-256)")
    return plan, model


def _on_dataset(
    run: Mapping[str, Any], plan: BenchPlan, model: LoadedModel, name: str, wanted: list[Wanted], progress: Progress
) -> Iterator[tuple[Wanted, AdversarialImage | str]]:
    done: set[Wanted] = set()
    try:
        task = open_task(plan, name, progress)
        if task.fingerprint != run["datasets"][name]["fingerprint"]:
            raise ResultError(f"The images, labels or class names of {name} are not those of the run")
        for (attack, eps), group in groupby(wanted, key=lambda w: (w.attack, w.eps)):
            for row, image in _in_cell(plan, model, task, attack, eps, list(group), progress):
                done.add(row)
                yield row, image
    except ClipguardError as error:
        yield from ((w, str(error)) for w in wanted if w not in done)


def _in_cell(
    plan: BenchPlan, model: LoadedModel, task: Task, attack: str, eps: float, wanted: list[Wanted], progress: Progress
) -> Iterator[tuple[Wanted, AdversarialImage | str]]:
    recipe = next(r for typed in plan.attacks if (r := open_recipe(typed)).name == attack)
    one = replace(plan, datasets=(task.name,), attacks=(attack,), eps=tuple(eps_of_numbers([eps], plan.norm)))
    indices = np.array(sorted(w.index for w in wanted), dtype=np.int64)
    found = attack_task(one, model, replace(task, indices=indices), recipe, {"costs": []}, progress)
    images = {image.index: image for image in found.images}
    for row in wanted:
        image = images[row.index]
        same = image.broken and image.row["adv_pred"] == row.prediction
        yield row, image if same else "Attacked on this machine, the image came out otherwise than in the run"
