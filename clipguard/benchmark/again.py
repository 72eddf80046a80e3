"""A stored run once more: its command line, and the adversarial images of some of its rows."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np

from clipguard.attacks.recipe_files import open_recipe
from clipguard.benchmark.adversarial import AdversarialImage
from clipguard.benchmark.attack import attack_task
from clipguard.benchmark.plan import DEFAULT_EPS, BenchPlan, radii_of, spell_eps
from clipguard.benchmark.protocols import find_protocol
from clipguard.benchmark.run import Progress, Silent, Task, choose_device, open_task
from clipguard.errors import ClipguardError, ResultError
from clipguard.models.loading import LoadedModel, load_model

FLAGS = ("quantize", "compile", "duplicate_names")
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


def rerun_command(run: Mapping[str, Any]) -> str:
    """The `clipguard bench` command line of a run, or "" for one of an older clipguard, which kept no plan."""
    if "plan" not in run:
        return ""
    plan = run["plan"]
    words = ["clipguard", "bench"]
    for name in run["models"]:
        words += ["--model", name]
    for name in plan["datasets"]:
        words += ["--dataset", name]
    defaults = {f.name: f.default for f in fields(BenchPlan)} | {"eps": DEFAULT_EPS[plan["norm"]]}
    if plan["protocol"] is not None:  # it brings the other values, but for these
        words += ["--protocol", plan["protocol"]]
        brought = find_protocol(plan["protocol"]).settings()
        defaults |= {name: brought[name] if name in plan["overrides"] else plan[name] for name in brought.keys() & plan}
        if "decode" not in plan:  # older than the field: all were decoded upright
            words += ["--decode", "upright"]
    for name, value in plan.items():
        if name not in ("datasets", "protocol", "overrides") and value != defaults[name]:
            value = [spell_eps(eps, plan["norm"]) for eps in value] if name == "eps" else value
            words += _option(name, value, defaults[name])
    return shlex.join(words)


def _option(name: str, value: Any, default: Any) -> list[str]:
    option = f"--{SHORT.get(name, name).replace('_', '-')}"
    if name in FLAGS:
        return [option]
    if isinstance(value, (list, tuple)):
        text = ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        same = isinstance(default, tuple) and text == ",".join(map(str, default))
        return [] if same else [option, text]
    return [option, "all" if name == "n_samples" and value is None else str(value)]


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
    one = replace(plan, datasets=(task.name,), attacks=(attack,), eps=tuple(radii_of([eps], plan.norm)))
    indices = np.array(sorted(w.index for w in wanted), dtype=np.int64)
    found = attack_task(one, model, replace(task, indices=indices), recipe, {"costs": []}, progress)
    images = {image.index: image for image in found.images}
    for row in wanted:
        image = images[row.index]
        same = image.broken and image.row["adv_pred"] == row.prediction
        yield row, image if same else "Attacked on this machine, the image came out otherwise than in the run"
