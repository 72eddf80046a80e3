"""What the engine found, as rows of the result files and of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.outcome import EpsOutcome, ImageOutcome
from clipguard.core.eps import PIXEL, Eps
from clipguard.core.records.run import StageCost, StageCosts
from clipguard.core.records.samples import Sample


class RowNames(TypedDict):
    """The columns that all rows of one model on one data set have in common."""

    model: str
    dataset: str
    norm: str


def cost_record(cost: Cost) -> StageCost:
    """Passes and seconds, exactly."""
    record: StageCost = {"forward": cost.forward, "backward": cost.backward, "seconds": cost.seconds}
    return {**record, "skipped": cost.skipped} if cost.skipped else record


def cost_table(costs: Mapping[str, Cost]) -> StageCosts:
    """Passes and rounded seconds of each stage, for people."""
    return {stage: {**cost_record(cost), "seconds": round(cost.seconds, 3)} for stage, cost in costs.items()}


def table_unit(norm: str) -> int:
    """The factor from pixels of [0,1] to the unit of eps in the tables."""
    return PIXEL if norm == "linf" else 1


def sample(
    names: RowNames, *, attack: str, index: int, label: int, clean_pred: int, eps: float, outcome: EpsOutcome
) -> Sample:
    """The row of one image at one eps, which is given as in the tables."""
    return {
        **names,
        "index": index,
        "label": label,
        "eps": eps,
        "attack": attack,
        "clean_pred": clean_pred,
        "adv_pred": outcome.prediction,
        "robust": outcome.robust,
        "broken_by": outcome.broken_by,
        "distance": outcome.distance * table_unit(names["norm"]),
        "margin": outcome.margin,
    }


def clean_sample(names: RowNames, image: ImageOutcome) -> Sample:
    """An image's row in the cell of the clean accuracy."""
    right = image.clean_prediction == image.label
    clean = EpsOutcome(0.0, right, image.clean_prediction, None if right else "clean", 0.0, image.clean_margin)
    return _of_image(names, "none", image, 0.0, clean)


def attacked_samples(names: RowNames, attack: str, image: ImageOutcome, eps: Sequence[Eps]) -> Iterator[Sample]:
    """An image's rows in the cells of an attack, one for each eps."""
    for one, outcome in zip(eps, image.eps_outcomes, strict=True):
        yield _of_image(names, attack, image, one.typed, outcome)


def _of_image(names: RowNames, attack: str, image: ImageOutcome, eps: float, outcome: EpsOutcome) -> Sample:
    return sample(
        names,
        attack=attack,
        index=image.index,
        label=image.label,
        clean_pred=image.clean_prediction,
        eps=eps,
        outcome=outcome,
    )
