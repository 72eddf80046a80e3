"""A worker: a process that holds one model on its device, and attacks images of one data set at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.outcome import ImageOutcome, Note
from clipguard.attacks.engine.passes.batching import CPU_BATCH
from clipguard.attacks.engine.passes.evaluator import Evaluator, require_finite
from clipguard.attacks.engine.reference import ReferenceEngine
from clipguard.attacks.inputs import explained
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.checks.probing import Probed, ProbedImages, probe_defended, probe_images, subject_of
from clipguard.benchmark.defended import DefenseOfPlan
from clipguard.benchmark.images import Preprocess
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import prepare
from clipguard.benchmark.run_record import Place
from clipguard.benchmark.stored.cell_key import cell_key
from clipguard.benchmark.task import KnownOutcomes, Task, engine_options
from clipguard.benchmark.workers.batch_fill import settle_fill
from clipguard.core.environment.device import choose_device
from clipguard.core.errors import AttackError
from clipguard.core.records.run import BatchInvariance
from clipguard.defenses.attacking.engine import DefendedEngine, Sizes
from clipguard.defenses.attacking.threats import DefendedModel
from clipguard.models.classifier import ZeroShotClassifier
from clipguard.models.description import describe_model
from clipguard.models.loading import LoadedModel, ModelInfo
from clipguard.models.module_model import FORMAT
from clipguard.sanity.checks import Finding
from clipguard.sanity.doctor import examine

log = logging.getLogger("clipguard")
Texts = tuple[Sequence[str], Sequence[str]]  # class names and templates


@dataclass(frozen=True)
class Tally:
    """What an attack on images took so far.

    Attributes:
        costs: passes and seconds by attack.
        batch_size: rows a pass at most.
        batch_invariance: whether images depend on their batch where it ran; None where that is not tested.
        sizes: of a defended model, how large its passes were, by way of attack.
    """

    costs: dict[str, Cost] = field(default_factory=dict)
    batch_size: int | None = None
    batch_invariance: BatchInvariance | None = None
    sizes: dict[str, Sizes] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Forward passes, in images."""
        return sum(cost.forward for cost in self.costs.values())


class Attacking(Protocol):
    """An attack on images that is under way: outcomes come as images finish."""

    def __iter__(self) -> Iterator[ImageOutcome]: ...

    @property
    def passes(self) -> int:
        """Forward passes so far, in images."""

    def tally(self) -> Tally:
        """What it took so far."""


class Workers(Protocol):
    """Who computes: what a run asks of this process, or of several."""

    place: Place
    """Where they compute."""

    def check_models(self, texts: Sequence[Texts]) -> dict[str, ModelInfo]:
        """Read every model of the plan, and say what each is; see `Worker.check_models`."""

    def take(self, name: str, task: Task) -> Preprocess:
        """Get ready for a model and a data set; returns what turns its images into pixels."""

    def describe(self) -> list[str]:
        """Lines that say what the model is."""

    def key(self, recipe: Recipe, indices: Sequence[int]) -> dict[str, Any]:
        """The key of stored outcomes; see `cell_key`."""

    def attack(
        self, recipe: Recipe, indices: Sequence[int], known: Mapping[int, KnownOutcomes], note: Note
    ) -> Attacking:
        """Attack images of the data set at every eps of the plan, but for what is known of them."""

    def probe(self, recipe: Recipe, images: ProbedImages) -> Probed:
        """Make the sanity checks that take passes of their own."""

    def predict(self, images: Sequence[Tensor], originals: Sequence[Tensor] | None = None) -> list[Tensor]:
        """(classes,) softmax of each image (3, H, W), which may differ in size, or of a random defence shares of votes.

        `originals` are the clean ones, with whose draws a random defence looks at what was made of them.
        """

    def examine(self, recipe: Recipe, images: ProbedImages, transfer_from: str | None) -> Iterable[Finding]:
        """All findings of the doctor; `transfer_from` names the model whose adversarial images are tried."""


@dataclass
class _Here:
    """An attack in this process."""

    engine: Engine | ReferenceEngine | DefendedEngine
    task: Task
    preprocess: Preprocess
    device: str
    known: Mapping[int, KnownOutcomes]
    batch_invariance: BatchInvariance | None

    def __iter__(self) -> Iterator[ImageOutcome]:
        with closing(self.task.examples(self.preprocess, self.device, known=self.known)) as examples:
            yield from self.engine.run(examples)

    @property
    def passes(self) -> int:
        return self.engine.passes

    def tally(self) -> Tally:
        sizes = self.engine.sizes if isinstance(self.engine, DefendedEngine) else {}
        return Tally(self.engine.costs, self.engine.evaluator.batch_size, self.batch_invariance, sizes)


class Worker:
    """Computes in this process; see `Workers`."""

    model: LoadedModel
    task: Task
    classifier: ZeroShotClassifier
    preprocess: Preprocess

    def __init__(self, plan: BenchPlan, objects: Objects, *, keep_images: bool = False) -> None:
        """Choose the device.

        Args:
            plan: of the run.
            objects: what names of the plan stand for.
            keep_images: whether outcomes come with the strongest image found.

        Raises:
            ModelError: where the device is not there.
        """
        self.plan, self.objects = plan, objects
        self.device = choose_device(plan.device)
        self.fresh_options = engine_options(plan, self.device, keep_images=keep_images)
        self.place = Place.of(plan, self.device)
        open_model = partial(objects.bare_model, plan=plan, device=self.device)
        self.defense = DefenseOfPlan(plan, open_model) if plan.defense is not None else None
        self._invariance: dict[bool, BatchInvariance] = {}  # of what is attacked, by whether gradients are needed
        self._told_of_test: set[str] = set()  # models

    def check_models(self, texts: Sequence[Texts]) -> dict[str, ModelInfo]:
        """Read every model of the plan, and say what each is, by name; the first stays.

        The others are let go again: all at once may not fit in memory, and a bad name or a prompt that is too long is
        not to be found hours into the run.

        Args:
            texts: of all data sets.

        Raises:
            ModelError: for either.
        """
        duplicates = self.plan.duplicate_names
        self.model = self.objects.model(self.plan.models[0], self.plan, self.device)
        infos = {self.model.info.name: self.model.info}
        for class_names, templates in texts:  # encoded, which is kept for the run
            self.model.text_features(class_names, templates, duplicates=duplicates)
        for name in self.plan.models[1:]:
            other = self.objects.model(name, self.plan)
            infos[other.info.name] = other.info
            for class_names, templates in texts:
                other.check_text(class_names, templates, duplicates=duplicates)
        return infos

    def take(self, name: str, task: Task) -> Preprocess:
        """Get ready for a model and a data set; returns what turns its images into pixels.

        Raises:
            AttackError: for a module that fails, or has another number of classes than the data.
        """
        self.prepare(name, task)
        self.check_module()
        return self.preprocess

    def prepare(self, name: str, task: Task) -> None:
        """The same without a look at images."""
        if not hasattr(self, "model") or self.model.info.name != name:
            self.model = self.objects.model(name, self.plan, self.device)
        self.task, self._invariance = task, {}
        self.options = self.fresh_options
        self.classifier, self.preprocess = prepare(self.plan, self.model, task.dataset)

    def check_module(self) -> None:
        """One pass of a module. Raises AttackError where it fails, or has another number of classes than the data."""
        if self.model.info.format != FORMAT:
            return
        dataset = self.task.dataset
        pixels = self.task.first(self.preprocess, self.device)[None]
        with torch.no_grad(), explained(self.classifier, pixels):
            logits = self.classifier(pixels)
        if isinstance(logits, torch.Tensor) and logits.ndim == 2 and logits.shape[1] != len(dataset.class_names):
            raise AttackError(
                f"{self.model.info.name} gives {logits.shape[1]} logits, and {dataset.name} has "
                f"{len(dataset.class_names)} classes; give it data with classes of its own."
            )

    def describe(self) -> list[str]:
        """Lines that say what the model is."""
        return describe_model(self.model)

    def key(self, recipe: Recipe, indices: Sequence[int]) -> dict[str, Any]:
        """The key of stored outcomes; see `cell_key`."""
        dataset = self.task.dataset.name
        key = cell_key(self.plan, self.model, self.classifier, dataset, recipe, self.options, list(indices))
        return key if self.defense is None else {**key, "defense": self.defense.key(recipe)}

    def attack(
        self, recipe: Recipe, indices: Sequence[int], known: Mapping[int, KnownOutcomes], note: Note
    ) -> Attacking:
        """Attack images of the data set at every eps of the plan, but for what is known of them."""
        task = self.task.only(np.array(indices, dtype=np.int64))
        batch_invariance = self.settle_fill(task, bool(recipe.stages)) if self.plan.engine == "clipguard" else None
        threat, eps = ThreatModel(self.plan.norm, self.plan.quantize), [one.pixels for one in self.plan.eps]
        engine: Engine | ReferenceEngine | DefendedEngine
        defended = self.defended()
        if defended is not None:
            engine = DefendedEngine(defended, recipe, threat, eps, self.options, note)
        else:
            engine_class = ReferenceEngine if self.plan.engine == "reference" else Engine
            engine = engine_class(self.classifier, recipe, threat, eps, self.options, note)
        return _Here(engine, task, self.preprocess, self.device, known, batch_invariance)

    def defended(self) -> DefendedModel | None:
        """The model with the defences of the plan around it, which has made no pass so far; None without a defence."""
        if self.defense is None:
            return None
        return self.defense.around(self.model, self.classifier, self.task.dataset)

    def settle_fill(self, task: Task, attacked: bool) -> BatchInvariance:
        """How passes are filled up from now on, so that an image's bits do not depend on its batch."""
        if attacked not in self._invariance:
            image = task.first(self.preprocess, self.device)
            told, name = self._told_of_test, self.model.info.name
            self.options, answer = settle_fill(
                self.model, self.classifier, image, self.options, attacked=attacked, tell=name not in told
            )
            told.add(name)
            self._invariance[attacked] = answer
        return self._invariance[attacked]

    def limit_batch(self, size: int | None) -> None:
        """From now on so many rows a pass at most; None: as many as fit."""
        self.fresh_options = replace(self.fresh_options, batch_size=size)
        self.options, self._invariance = self.fresh_options, {}

    def probe(self, recipe: Recipe, images: ProbedImages) -> Probed:
        """Make the sanity checks that take passes of their own."""
        defended = self.defended()
        if defended is not None:
            return probe_defended(self.plan, defended, images, self.device, self.options)
        return probe_images(self.plan, self.classifier, recipe, images, self.device, self.task.dataset.class_names)

    def examine(self, recipe: Recipe, images: ProbedImages, transfer_from: str | None) -> Iterator[Finding]:
        """All findings of the doctor; see `Workers`."""
        plan, dataset, other = self.plan, self.task.dataset, None
        if transfer_from:
            model = self.objects.bare_model(transfer_from, plan, self.device)
            for line in describe_model(model):
                log.info(line)
            # It resizes inside, so that it takes the images of the other's size.
            duplicates = plan.duplicate_names
            other = model.classifier(dataset.class_names, dataset.templates, "native", duplicates=duplicates)
        size, eps = plan.batch_size or CPU_BATCH, plan.eps[0].pixels
        defended = self.defended()
        evaluator = Evaluator(defended.search() if defended else self.classifier, size)
        subject = subject_of(plan, evaluator, images, self.device, eps, dataset.class_names)
        yield from examine(subject, recipe, other)
        if defended:
            yield from probe_defended(plan, defended, images, self.device, self.options).findings

    def predict(self, images: Sequence[Tensor], originals: Sequence[Tensor] | None = None) -> list[Tensor]:
        """See `Workers`.

        Raises:
            NonFiniteError: for NaN.
        """
        options, shares = self.options, []
        size = options.batch_size or CPU_BATCH
        defended = self.defended()
        judge = defended.judge("judge") if defended else None
        evaluator = Evaluator(judge or self.classifier, size, options.precision, fill=options.fill)
        for _, group in groupby(enumerate(images), key=lambda pair: (pair[1].shape, pair[0] // size)):
            positions, batch = zip(*group, strict=True)
            x = torch.stack(batch).to(self.device)
            if judge and originals is not None:
                judge.tell(x, torch.stack([originals[k] for k in positions]).to(self.device))
            logits = evaluator.verify(x)
            require_finite(logits, positions.__getitem__, "on a clean or finished image")
            shares += list((logits if judge and judge.votes else logits.softmax(dim=1)).cpu())
        return shares
