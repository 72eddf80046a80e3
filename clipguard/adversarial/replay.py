"""The adversarial images of a stored run, attacked again: `clipguard bench` keeps none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from clipguard.adversarial.generate import attack_task
from clipguard.adversarial.result import AdversarialImage
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.task import Task, open_task
from clipguard.benchmark.workers.worker import Worker
from clipguard.core.environment.device import choose_device
from clipguard.core.eps import eps_of_numbers
from clipguard.core.errors import ClipguardError, ResultError
from clipguard.core.progress import Progress, Silent
from clipguard.core.records.run import RunRecord
from clipguard.models.loading import LoadedModel


@dataclass(frozen=True)
class ReplayRequest:
    """A row of a run whose image is asked for: `eps` as in the tables, `prediction` that of the run under attack."""

    model: str
    dataset: str
    attack: str
    eps: float
    index: int
    prediction: int


@dataclass(frozen=True)
class Replay:
    """What came of a request: the image, or the reason why there is none."""

    request: ReplayRequest
    image: AdversarialImage | None
    problem: str = ""


def replay_images(run: RunRecord, requests: Sequence[ReplayRequest], progress: Progress | None = None) -> list[Replay]:
    """Attack images of a run again, as it did: an image's outcome depends on no other image and no other eps.

    Reasons for no image are another weight file or other data than then, a model or data set that is not there any
    more, and an attack that does not succeed on this machine.
    """
    progress = progress or Silent()
    replays: list[Replay] = []
    ordered = sorted(requests, key=lambda r: (r.model, r.dataset, r.attack, r.eps, r.index))
    for name, group in groupby(ordered, key=lambda r: r.model):
        of_model = list(group)
        try:
            plan, model = _load_as_then(run, name)
        except ClipguardError as error:
            replays += [Replay(request, None, str(error)) for request in of_model]
            continue
        for _, of_dataset in groupby(of_model, key=lambda r: r.dataset):
            replays += _replay_dataset(run, plan, model, list(of_dataset), progress)
    return replays


def _load_as_then(run: RunRecord, name: str) -> tuple[BenchPlan, LoadedModel]:
    """A model of the run with its prompts, and the plan for it alone.

    Raises:
        ClipguardError: where it is not what it was.
    """
    if "plan" not in run:
        raise ResultError("The run is of an older clipguard, which did not keep its plan")
    if "defense" in run:
        raise ResultError("Images of defended models are not made again here; `clipguard attack --defense` shows them")
    if run["engine"] != "clipguard" or run["eps_mode"] == "nested":
        raise ResultError("With --engine reference and --eps-mode nested, an image's outcome depends on the others")
    settings = {**run["plan"], "device": "auto", "precision": run["precision"], "compile": False, "batch_size": None}
    plan = BenchPlan.from_dict(settings, [name])
    typed = run["models"][name]["name"] if plan.prompts is not None else name
    model = Objects().model(typed, plan, choose_device(plan.device))
    then, now = run["models"][name], model.info.to_dict()
    if any(then.get(key) != now[key] for key in ("sha256", "base_sha256", "text_sha256")):
        raise ResultError(f"The weights of {name} are not those of the run (another SHA-256)")
    return replace(plan, prompts=None), model  # which has them


def _replay_dataset(
    run: RunRecord, plan: BenchPlan, model: LoadedModel, requests: Sequence[ReplayRequest], progress: Progress
) -> list[Replay]:
    """The images of one data set, cell by cell; after an error, it is the reason for all that are left."""
    dataset = requests[0].dataset
    replays: list[Replay] = []
    try:
        task = open_task(plan, dataset, progress)
        if task.fingerprint != run["datasets"][dataset]["fingerprint"]:
            raise ResultError(f"The images, labels or class names of {dataset} are not those of the run")
        for _, of_cell in groupby(requests, key=lambda r: (r.attack, r.eps)):
            replays += _replay_cell(plan, model, task, list(of_cell), progress)
    except ClipguardError as error:
        done = {replay.request for replay in replays}
        replays += [Replay(request, None, str(error)) for request in requests if request not in done]
    return replays


def _replay_cell(
    plan: BenchPlan, model: LoadedModel, task: Task, requests: Sequence[ReplayRequest], progress: Progress
) -> list[Replay]:
    """The images of one attack at one eps."""
    attack, eps = requests[0].attack, requests[0].eps
    recipe = next(recipe for typed in plan.attacks if (recipe := open_recipe(typed)).name == attack)
    one = replace(plan, datasets=(task.name,), attacks=(attack,), eps=tuple(eps_of_numbers([eps], plan.norm)))
    indices = np.array(sorted(request.index for request in requests), dtype=np.int64)
    worker = Worker(one, Objects(models={model.info.name: model}), keep_images=True)
    attacked = attack_task(one, worker, model.info.name, task.only(indices), recipe, progress)
    images = {image.index: image for image in attacked.images}
    return [_compare_with_run(request, images[request.index]) for request in requests]


def _compare_with_run(request: ReplayRequest, image: AdversarialImage) -> Replay:
    if image.broken and image.row["adv_pred"] == request.prediction:
        return Replay(request, image)
    return Replay(request, None, "Attacked on this machine, the image came out otherwise than in the run")
