"""What the engine found, as rows of the result files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.outcome import ImageOutcome
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.plan import BenchPlan
from clipguard.core.eps import PIXEL


def cost_table(costs: dict[str, Cost]) -> dict[str, Any]:
    """Passes and seconds of each stage, as plain JSON types."""
    return {name: asdict(cost) | {"seconds": round(cost.seconds, 3)} for name, cost in costs.items()}


def clean_row(outcome: ImageOutcome) -> dict[str, Any]:
    """An image's row in the cell of the clean accuracy, without model, data set and norm."""
    right = outcome.clean_prediction == outcome.label
    return {
        "index": outcome.index,
        "label": outcome.label,
        "eps": 0.0,
        "attack": "none",
        "clean_pred": outcome.clean_prediction,
        "adv_pred": outcome.clean_prediction,
        "robust": right,
        "broken_by": None if right else "clean",
        "distance": 0.0,
        "margin": outcome.clean_margin,
    }


def attack_rows(outcome: ImageOutcome, recipe: Recipe, plan: BenchPlan) -> Iterator[dict[str, Any]]:
    """An image's rows in the cells of an attack, one for each radius, without model, data set and norm."""
    unit = PIXEL if plan.norm == "linf" else 1
    for radius, level in zip(plan.eps, outcome.eps_outcomes, strict=True):
        yield {
            "index": outcome.index,
            "label": outcome.label,
            "eps": radius.typed,
            "attack": recipe.name,
            "clean_pred": outcome.clean_prediction,
            "adv_pred": level.prediction,
            "robust": level.robust,
            "broken_by": level.broken_by,
            "distance": level.distance * unit,
            "margin": level.margin,
        }
