"""Sanity checks of a bench run: those its rows answer for nothing, and cheap probes of a few of its images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL.Image import Image
from torch import Tensor

from clipguard.attacks.recipes import Recipe, stage_name
from clipguard.attacks.threat import TOLERANCE
from clipguard.benchmark.plan import PIXEL, BenchPlan
from clipguard.benchmark.results.result import BenchResult
from clipguard.data import ZeroShotDataset
from clipguard.sanity.checks import CHECKS, Finding, counted, not_checked
from clipguard.sanity.predictions import PREDICTION_CHECKS, prediction_findings

log = logging.getLogger("clipguard")
INTEREST = ("failure", "warning", "ok", "not checked")
BLACK_BOX = "square"
NO_PROBES = "--no-probes"  # how probes are switched off
HUGE = 127.5  # of 255: a ball that holds the all-grey image
Entry = dict[str, Any]  # of `run.findings`: model, dataset, findings


def find(
    plan: BenchPlan,
    dataset: ZeroShotDataset,
    recipes: Sequence[Recipe],
    samples: pd.DataFrame,
    probe: Callable[[Recipe], list[Finding]],
) -> list[Finding]:
    """The findings about one model on one data set, whose rows are `samples`.

    `probe` gives those of the probes; it is only called where something was attacked.
    """
    found = {finding.id: finding for finding in of_predictions(samples, dataset.class_names)}
    attacked = [recipe for recipe in recipes if recipe.stages]
    if attacked and plan.eps[-1].pixels > 0:
        stages = tuple(stage for recipe in attacked for stage in recipe.stages)
        recipe = Recipe(" and ".join(recipe.name for recipe in attacked), stages)
        for finding in (*probe(recipe), *row_findings(samples, attacked, plan.norm)):
            known = found.setdefault(finding.id, finding)
            if INTEREST.index(finding.verdict) < INTEREST.index(known.verdict):  # the worse of rows and probes counts
                found[finding.id] = finding
        found["duplicate-classes"] = with_prompts(found["duplicate-classes"], dataset.templates)
    return [found[check] for check in CHECKS if check in found]


def of_predictions(samples: pd.DataFrame, class_names: Sequence[str]) -> list[Finding]:
    """Whether the clean predictions of one model on one data set know anything of the labels."""
    clean = samples[samples["attack"] == "none"]
    return prediction_findings(clean["label"], clean["clean_pred"], len(class_names), class_names)


def prediction_entries(result: BenchResult) -> list[Entry]:
    """The same for every model and data set of a result, whatever clipguard it is of: its rows tell."""
    groups = result.samples.groupby(["model", "dataset"], sort=False)
    return [
        entry(str(model), str(dataset), of_predictions(rows, result.run["datasets"][dataset]["class_names"]))
        for (model, dataset), rows in groups
        if (rows["attack"] == "none").any()
    ]


def entry(model: str, dataset: str, findings: Sequence[Finding]) -> Entry:
    """One of `run.findings`."""
    return {"model": model, "dataset": dataset, "findings": [finding.to_dict() for finding in findings]}


def pick_images(
    dataset: ZeroShotDataset, preprocess: Callable[[Image], Tensor], indices: Any, most: int
) -> tuple[Any, Tensor]:
    """At most so many of these images, spread evenly: their indices, and pixels (N, 3, H, W).

    Where sizes differ, those of the commonest size.
    """
    chosen = indices[np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int))]
    pixels = [preprocess(dataset.image(int(index))) for index in chosen]
    shape = Counter(image.shape for image in pixels).most_common(1)[0][0]
    kept = [i for i, image in enumerate(pixels) if image.shape == shape]
    return chosen[kept], torch.stack([pixels[i] for i in kept])


def with_prompts(finding: Finding, templates: Sequence[str]) -> Finding:
    """The finding about classes, and a warning if a prompt is there twice, which counts it twice in the mean."""
    repeated = [template for template, count in Counter(templates).items() if count > 1]
    if not repeated:
        return finding
    evidence = f"{finding.evidence}; {len(repeated)} of {len(templates)} prompts are there twice: {repeated[0]!r}"
    numbers = {**finding.numbers, "prompts": len(repeated)}
    return replace(finding, verdict="warning", evidence=evidence, numbers=numbers)


def row_findings(samples: pd.DataFrame, recipes: Sequence[Recipe], norm: str) -> list[Finding]:
    """What the rows of one model on one data set tell, with the clean ones (`attack` "none") among them.

    They are of `recipes`; eps as in the tables.
    """
    clean = samples[samples["attack"] == "none"].set_index("index")
    right = int(clean["robust"].sum())
    rows = samples[(samples["attack"] != "none") & samples["index"].map(clean["robust"])]
    if not right:
        return [not_checked(check, "no image is right when clean") for check in ROW_CHECKS]
    return [
        _eps_zero(rows, right),
        _eps_order(rows, right),
        _large_eps(rows, right, norm),
        _black_box(rows, right, recipes),
        _silent_success(rows, norm),
    ]


ROW_CHECKS = ("eps-zero", "eps-order", "large-eps", "black-box", "silent-success")


def _eps_zero(rows: pd.DataFrame, n: int) -> Finding:
    zero = rows[rows["eps"] == 0]
    if zero.empty:
        return not_checked("eps-zero", "the run has no eps 0")
    bad = zero.loc[~zero["robust"], "index"].nunique()
    return Finding(
        "eps-zero",
        "failure" if bad else "ok",
        f"{bad} of {n} images right when clean are wrong at eps 0",
        {"bad": bad, "n": n},
    )


def _eps_order(rows: pd.DataFrame, n: int) -> Finding:
    """True by construction: the engine carries what broke an image to larger eps. So one image is too many."""
    if rows["eps"].nunique() < 2:
        return not_checked("eps-order", "the run has one eps")
    ordered = rows.sort_values("eps", kind="stable")
    recovered = ordered["robust"] & (ordered.groupby(["attack", "index"])["robust"].cummin() != ordered["robust"])
    bad = ordered.loc[recovered, "index"].nunique()
    return Finding(
        "eps-order",
        "failure" if bad else "ok",
        f"{bad} of {n} images are broken at one eps and hold at a larger one",
        {"bad": bad, "n": n},
    )


def _large_eps(rows: pd.DataFrame, n: int, norm: str) -> Finding:
    top = rows["eps"].max()
    if norm != "linf" or top < HUGE:
        unit = f"{top:g}/255" if norm == "linf" else f"{norm} {top:g}"
        return not_checked("large-eps", f"the largest eps is {unit}; `clipguard doctor` tries one that allows anything")
    hold = int(rows[rows["eps"] == top].groupby("index")["robust"].all().sum())
    return counted("large-eps", hold, n, f"images hold at eps {top:g}/255")


def _black_box(rows: pd.DataFrame, n: int, recipes: Sequence[Recipe]) -> Finding:
    """Images that Square broke after gradient attacks at that eps, in its recipe or another of the run, failed."""
    names = {recipe.name: [stage_name(stage) for stage in recipe.stages] for recipe in recipes}
    gradient = {name for stages in names.values() for name in stages} - {BLACK_BOX}
    if not any(BLACK_BOX in stages for stages in names.values()) or not gradient:
        return not_checked("black-box", "the run has no square beside gradients; `clipguard doctor` tries it")
    # An outcome is carried from the eps where it was found to larger ones, which says nothing about those.
    first = rows[~rows["robust"]].sort_values("eps", kind="stable").groupby(["attack", "index"]).head(1)
    by_square = first[first["broken_by"] == BLACK_BOX]
    after = {name for name, stages in names.items() if BLACK_BOX in stages and stages[0] != BLACK_BOX}
    alone = rows[rows["attack"].map(lambda name: BLACK_BOX not in names[name])]
    survived = set(zip(*(alone.loc[alone["robust"], c] for c in ("index", "eps")), strict=True))
    fallen = rows[rows["broken_by"].isin(gradient)]
    broken = set(zip(*(fallen[c] for c in ("index", "eps")), strict=True))
    missed = {
        index
        for attack, index, eps in zip(*(by_square[c] for c in ("attack", "index", "eps")), strict=True)
        if (index, eps) not in broken and (attack in after or (index, eps) in survived)
    }
    return counted("black-box", len(missed), n, "images fell to square after gradients had failed")


def _silent_success(rows: pd.DataFrame, norm: str) -> Finding:
    claimed = rows[~rows["robust"]]
    if claimed.empty:
        return not_checked("silent-success", "the attacks claim no success")
    slack = TOLERANCE * PIXEL if norm == "linf" else TOLERANCE * (1 + claimed["eps"])
    verified = (claimed["adv_pred"] != claimed["label"]) & (claimed["distance"] <= claimed["eps"] + slack)
    bad = int((~(verified & (claimed["margin"] <= 0))).sum())  # NaN compares as false
    return Finding(
        "silent-success",
        "failure" if bad else "ok",
        f"{bad} of {len(claimed)} claimed successes are right, outside the ball, or have no negative margin",
        {"bad": bad, "n": len(claimed)},
    )


def alarms(findings: Sequence[Entry], checks: Container[str] = CHECKS, *, undecided: bool = True) -> list[str]:
    """A line for each warning and failure of these checks in `run.findings`, and where chance cannot be told."""
    return [
        f"{f['verdict'].upper()} {f['id']}, {entry['model']} on {entry['dataset']}: {f['evidence']}. {f['advice']}"
        for entry in findings
        for f in entry["findings"]
        if f["id"] in checks and (f["verdict"] in ("failure", "warning") or (undecided and "undecided" in f["numbers"]))
    ]


def say(findings: Sequence[Entry], *, undecided: bool = True) -> None:
    """Log what the predictions give away: nothing that is computed from them can be trusted before it is understood."""
    for line in alarms(findings, PREDICTION_CHECKS, undecided=undecided):
        log.warning(line.removeprefix("WARNING "))  # which the log says itself


def finding_lines(findings: Sequence[Entry]) -> list[str]:
    """`run.findings` for people: a line for each warning and failure, and one that counts all."""
    if not findings:
        return []
    lines = alarms(findings)
    off = any(f["evidence"].endswith(f"({NO_PROBES})") for e in findings for f in e["findings"])
    why = f"; the probes were not made ({NO_PROBES})" if off else ""
    verdicts = Counter(f["verdict"] for e in findings for f in e["findings"])
    counts = ", ".join(f"{verdicts[v]} {v}" for v in ("ok", "warning", "failure", "not checked") if verdicts[v])
    return [*lines, f"Sanity checks: {counts}{why}; `clipguard doctor` makes more, docs/doctor.md explains them."]
