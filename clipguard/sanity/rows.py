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
    """What the rows of one model on one data set tell, in the order of `ROW_CHECKS`.

    Args:
        samples: a row an image, recipe and eps, the clean ones (`attack` "none") among them; eps as in the tables.
        recipes: those of the rows.
        norm: of the ball.
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
    stages = {recipe.name: [stage.full_name for stage in recipe.stages] for recipe in recipes}
    with_square = {name for name, names in stages.items() if BLACK_BOX in names}
    gradient_attacks = {name for names in stages.values() for name in names} - {BLACK_BOX}
    if not with_square or not gradient_attacks:
        return not_checked("black-box", "the run has no square beside gradients; `clipguard doctor` tries it")
    square_after_gradients = {name for name in with_square if stages[name][0] != BLACK_BOX}
    broken_by_gradients = _pairs(rows[rows["broken_by"].isin(gradient_attacks)])
    held_against_gradients = _pairs(rows[rows["robust"] & ~rows["attack"].isin(with_square)])
    missed = {
        index
        for attack, index, eps in _broken_by_square(rows)
        if (index, eps) not in broken_by_gradients
        and (attack in square_after_gradients or (index, eps) in held_against_gradients)
    }
    return counted("black-box", len(missed), n, "images fell to square after gradients had failed")


def _broken_by_square(rows: pd.DataFrame) -> list[tuple[str, int, float]]:
    """Recipe, image and smallest eps of what Square broke.

    An outcome is carried from the eps where it was found to larger ones, which says nothing about those.
    """
    broken = rows[~rows["robust"]].sort_values("eps", kind="stable")
    first = broken.groupby(["attack", "index"]).head(1)
    by_square = first[first["broken_by"] == BLACK_BOX]
    return list(zip(*(by_square[column] for column in ("attack", "index", "eps")), strict=True))


def _pairs(rows: pd.DataFrame) -> set[tuple[int, float]]:
    """Image and eps of each row."""
    return set(zip(*(rows[column] for column in ("index", "eps")), strict=True))


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
