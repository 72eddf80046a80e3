"""Sanity checks of a bench run: those its rows answer for nothing, and cheap probes of a few of its images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL.Image import Image
from torch import Tensor

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.images import Preprocess
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.result import BenchResult
from clipguard.core.records.run import FindingsRecord
from clipguard.data import ZeroShotDataset
from clipguard.sanity.checks import CHECKS, Finding, weightier
from clipguard.sanity.defenses import threat_findings
from clipguard.sanity.entries import entry
from clipguard.sanity.predictions import prediction_findings
from clipguard.sanity.rows import row_findings

log = logging.getLogger("clipguard")


def run_findings(
    plan: BenchPlan,
    dataset: ZeroShotDataset,
    recipes: Sequence[Recipe],
    samples: pd.DataFrame,
    probe: Callable[[Recipe], list[Finding]],
) -> list[Finding]:
    """What the sanity checks find about one model on one data set.

    Args:
        plan: of the run.
        dataset: the data set.
        recipes: all that were run.
        samples: the rows of the model on the data set.
        probe: makes the checks that take passes of their own; it is only called where something was attacked.
    """
    findings = {finding.id: finding for finding in of_predictions(samples, dataset.class_names)}
    attacked = [recipe for recipe in recipes if recipe.stages]
    if attacked and plan.eps[-1].pixels > 0:
        stages = tuple(stage for recipe in attacked for stage in recipe.stages)
        recipe = Recipe(" and ".join(recipe.name for recipe in attacked), stages)
        for finding in (*probe(recipe), *row_findings(samples, attacked, plan.norm)):
            findings[finding.id] = weightier(findings.get(finding.id, finding), finding)
        findings["duplicate-classes"] = with_prompts(findings["duplicate-classes"], dataset.templates)
    return [findings[check] for check in CHECKS if check in findings]


def defense_findings(
    plan: BenchPlan,
    dataset: ZeroShotDataset,
    recipes: Sequence[Recipe],
    samples: pd.DataFrame,
    probe: Callable[[Recipe], list[Finding]],
) -> list[Finding]:
    """The same about one defended model."""
    attacked = [recipe for recipe in recipes if recipe.stages]
    findings = of_predictions(samples, dataset.class_names)
    if attacked and plan.eps[-1].pixels > 0:
        findings += [*threat_findings(samples, [r.name for r in attacked], plan.eps[-1].typed), *probe(attacked[0])]
    return findings


def of_predictions(samples: pd.DataFrame, class_names: Sequence[str]) -> list[Finding]:
    """Whether the clean predictions of one model on one data set know anything of the labels."""
    clean = samples[samples["attack"] == "none"]
    return prediction_findings(clean["label"], clean["clean_pred"], len(class_names), class_names)


def prediction_entries(result: BenchResult) -> list[FindingsRecord]:
    """The same for every model and data set of a result, whatever clipguard it is of: its rows tell."""
    groups = result.samples.groupby(["model", "dataset"], sort=False)
    return [
        entry(str(model), str(dataset), of_predictions(rows, result.run["datasets"][str(dataset)]["class_names"]))
        for (model, dataset), rows in groups
        if (rows["attack"] == "none").any()
    ]


def pick_images(image: Callable[[int], Image], preprocess: Preprocess, indices: Any, most: int) -> tuple[Any, Tensor]:
    """At most so many of these images, spread evenly: their indices, and pixels (N, 3, H, W).

    Where sizes differ, those of the commonest size. `image` gives one by its index.
    """
    chosen = indices[np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int))]
    pixels = [preprocess(image(int(index))) for index in chosen]
    shape = Counter(one.shape for one in pixels).most_common(1)[0][0]
    kept = [i for i, one in enumerate(pixels) if one.shape == shape]
    return chosen[kept], torch.stack([pixels[i] for i in kept])


def with_prompts(finding: Finding, templates: Sequence[str]) -> Finding:
    """The finding about classes, and a warning if a prompt is there twice, which counts it twice in the mean."""
    repeated = [template for template, count in Counter(templates).items() if count > 1]
    if not repeated:
        return finding
    evidence = f"{finding.evidence}; {len(repeated)} of {len(templates)} prompts are there twice: {repeated[0]!r}"
    numbers = {**finding.numbers, "prompts": len(repeated)}
    return replace(finding, verdict="warning", evidence=evidence, numbers=numbers)
