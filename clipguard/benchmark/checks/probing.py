"""The sanity probes of a bench run: a few passes over a few images, charged to the run and kept in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.passes.evaluator import Evaluator, Objective
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.checks.findings import pick_images
from clipguard.benchmark.images import Preprocess
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.sample_rows import RowNames, cost_record, cost_table
from clipguard.benchmark.task import Task
from clipguard.core.records.run import CostRecord, StageCosts
from clipguard.defenses.attacking.threats import DefendedModel, ThreatRecipe
from clipguard.defenses.registry import parse_defenses
from clipguard.sanity.checks import Finding, not_checked
from clipguard.sanity.defenses import PASS_CHECKS, DefenseProbe
from clipguard.sanity.entries import NO_PROBES
from clipguard.sanity.probes import PROBE_CHECKS, probe
from clipguard.sanity.subject import Subject
from clipguard.store.probes import ProbeKey, probe_file, read_probes, write_probes
from clipguard.store.store import Store

PROBED_IMAGES = 8  # images a model and data set
DEFENDED_IMAGES = 16  # the same of a defended model
GATE_IMAGES = 200  # clean ones that a gate is shown: passes without gradients
PROBES = "sanity probes"  # their name in `run.costs`
VERSION = 1  # of what is stored. Increase it with any change of the probes


class ChargedEvaluator(Evaluator):
    """Charges every pass to the probes."""

    def verify(self, x: Tensor) -> Tensor:
        """(B, C) logits in float32."""
        with self.costs.charged({PROBES: len(x)}, {}):
            return super().verify(x)

    def gradient(self, x: Tensor, objective: Objective) -> tuple[Tensor, ...]:
        """Logits (B, C), objective (B,) and its gradient (B, C, H, W) with respect to each row."""
        with self.costs.charged({PROBES: len(x)}, {PROBES: len(x)}):
            return super().gradient(x, objective)


@dataclass(frozen=True)
class ProbedImages:
    """The images that are probed.

    Attributes:
        index: (N,) in their data set.
        x: pixels (N, 3, H, W) in [0,1].
        labels: (N,) class numbers.
        clean: (M, 3, H, W), for the false positives of a gate; None: x.
    """

    index: npt.NDArray[np.int64]
    x: Tensor
    labels: npt.NDArray[np.int64]
    clean: Tensor | None = None


class Probed(NamedTuple):
    """What the probes found, and what they took."""

    findings: list[Finding]
    costs: dict[str, Cost]


def probe_images(
    plan: BenchPlan,
    classifier: nn.Module,
    recipe: Recipe,
    images: ProbedImages,
    device: str,
    class_names: Sequence[str],
) -> Probed:
    """The findings of `PROBE_CHECKS` about a classifier on its device."""
    evaluator = ChargedEvaluator(classifier, PROBED_IMAGES)
    subject = subject_of(plan, evaluator, images, device, plan.eps[-1].pixels, class_names)
    findings = list(probe(subject, recipe))
    return Probed(findings, evaluator.costs.settled())


def probe_defended(
    plan: BenchPlan, defended: DefendedModel, images: ProbedImages, device: str, options: EngineOptions
) -> Probed:
    """The findings of `PASS_CHECKS` about a defended model on its device."""
    labels, threat = torch.from_numpy(images.labels).long().to(device), ThreatModel(plan.norm)
    eps, index, started = plan.eps[-1].pixels, images.index.tolist(), time.perf_counter()
    x, clean = images.x.to(device), None if images.clean is None else images.clean.to(device)
    findings = DefenseProbe(defended, x, labels, index, threat, eps, options, clean).findings()
    count = defended.count
    return Probed(findings, {PROBES: Cost(count.forward, count.backward, time.perf_counter() - started)})


def subject_of(
    plan: BenchPlan, evaluator: Evaluator, images: ProbedImages, device: str, eps: float, class_names: Sequence[str]
) -> Subject:
    """A model and images as the checks take them; `eps` in pixels of [0,1]."""
    labels = torch.from_numpy(images.labels).long().to(device)
    index = images.index.tolist()
    return Subject(evaluator, images.x.to(device), labels, index, plan.norm, eps, plan.seed, class_names)


@dataclass
class Prober:
    """Probes one model on one data set, unless `store` has what came of the same probes.

    probe: makes them on images.
    cells: names of the stored cells of what is attacked, which stand for all that can change an outcome.
    """

    plan: BenchPlan
    probe: Callable[[Recipe, ProbedImages], Probed]
    task: Task
    preprocess: Preprocess
    samples: pd.DataFrame
    store: Store | None = None
    cells: Sequence[str] = ()
    costs: dict[str, Cost] = field(default_factory=dict)
    stored: StageCosts = field(default_factory=dict)  # what the findings took that were not computed again

    @property
    def images(self) -> int:
        """How many are probed."""
        return PROBED_IMAGES if self.plan.defense is None else DEFENDED_IMAGES

    def __call__(self, recipe: Recipe) -> list[Finding]:
        """The findings of `PROBE_CHECKS`."""
        clean = self.samples[self.samples["attack"] == "none"]
        right = clean[clean["robust"]]
        few = right if len(right) and self.plan.defense is None else clean  # a defence may be what makes them wrong
        indices = few["index"].to_numpy()
        index, x = pick_images(self.task.images.image, self.preprocess, indices, self.images)
        images = ProbedImages(index, x, self.task.dataset.labels[index])
        if self.plan.defense is not None and any(defense.gated for defense in parse_defenses(self.plan.defense)):
            read, shown = self.task.images.image, clean["index"].to_numpy()
            images = replace(images, clean=pick_images(read, self.preprocess, shown, GATE_IMAGES)[1])
        key = self._key(index)
        known = read_probes(self.store, probe_file(self.store, key)) if self.store else None
        if known is not None:
            self.stored = known["costs"]
            return [Finding(**finding) for finding in known["findings"]]
        findings, self.costs = self.probe(recipe, images)
        if self.store is not None:
            write_probes(self.store, key, findings, {stage: cost_record(cost) for stage, cost in self.costs.items()})
        return findings

    def cost_record(self, names: RowNames) -> CostRecord:
        """What the probes took, now or when they were computed."""
        return {
            **names,
            "attack": PROBES,
            "batch_size": self.images if self.costs else None,
            "stages": cost_table(self.costs),
            "reused": 0,
            "computed": 0,
            "stored": self.stored,
        }

    def _key(self, index: npt.NDArray[np.int64]) -> ProbeKey:
        return {
            "version": VERSION,
            "cells": list(self.cells),
            "eps": self.plan.eps[-1].pixels,
            "images": [(i, self.task.hashes[i], int(self.task.dataset.labels[i])) for i in index.tolist()],
            "class_names": self.task.dataset.class_names,
        }


def switched_off(recipe: Recipe) -> list[Finding]:
    """Instead of a `Prober`, where the user wants no probes."""
    checks = PASS_CHECKS if isinstance(recipe, ThreatRecipe) else PROBE_CHECKS
    return [not_checked(check, f"probes are switched off ({NO_PROBES})") for check in checks]
