"""Sanity checks that the rows of a run answer, without any pass through the model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import TOLERANCE
from clipguard.core.eps import PIXEL
from clipguard.sanity.checks import UNBOUNDED_EPS, Finding, counted, not_checked

BLACK_BOX = "square"


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
    if norm != "linf" or top < UNBOUNDED_EPS * PIXEL:
        unit = f"{top:g}/255" if norm == "linf" else f"{norm} {top:g}"
        return not_checked("large-eps", f"the largest eps is {unit}; `clipguard doctor` tries one that allows anything")
    hold = int(rows[rows["eps"] == top].groupby("index")["robust"].all().sum())
    return counted("large-eps", hold, n, f"images hold at eps {top:g}/255")


def _black_box(rows: pd.DataFrame, n: int, recipes: Sequence[Recipe]) -> Finding:
    """Images that Square broke after gradient attacks at that eps, in its recipe or another of the run, failed."""
    names = {recipe.name: [stage.full_name for stage in recipe.stages] for recipe in recipes}
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
