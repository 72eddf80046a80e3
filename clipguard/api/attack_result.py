"""What `clipguard.attack` gives: adversarial images, and how each image fared."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from clipguard.adversarial.result import ATTACK_RECORD
from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.outcome import EpsOutcome, ImageOutcome
from clipguard.core.checking import check_type
from clipguard.core.eps import Norm, one_eps, show_eps
from clipguard.core.errors import OutputError, ResultError, first_line
from clipguard.core.files.output import OutputFolder
from clipguard.core.html_table import html_table
from clipguard.core.markdown import markdown_table
from clipguard.statistics.intervals import percent_with_interval, wilson_interval

SCHEMA = 1
TENSORS, RECORD = "adversarial.safetensors", ATTACK_RECORD
HEADINGS = ("attack", "eps", "n", "clean", "robust", "broken by")


@dataclass
class AttackResult:
    """Outcome of `attack` at one eps, rows in the order of the images.

    x_adv (N, C, H, W): the verified adversarial image, or the strongest one found; robust (N,) bool;
    prediction (N,) int64 on x_adv; broken_by: "clean", the attack, or None; outcomes and costs: everything else;
    attack, norm: what was run, under which norm.
    """

    x_adv: Tensor
    robust: Tensor
    prediction: Tensor
    broken_by: list[str | None]
    outcomes: list[ImageOutcome]
    costs: dict[str, Cost]
    attack: str
    norm: Norm

    @classmethod
    def of_outcomes(cls, outcomes: list[ImageOutcome], costs: dict[str, Cost], attack: str, norm: Norm) -> AttackResult:
        """The result of images at one eps each, which have their adversarial images."""
        at_eps = [outcome.eps_outcomes[0] for outcome in outcomes]
        return cls(
            x_adv=torch.stack([one.image for one in at_eps if one.image is not None]),
            robust=torch.tensor([one.robust for one in at_eps]),
            prediction=torch.tensor([one.prediction for one in at_eps]),
            broken_by=[one.broken_by for one in at_eps],
            outcomes=outcomes,
            costs=costs,
            attack=attack,
            norm=norm,
        )

    @classmethod
    def load(cls, folder: str | Path) -> AttackResult:
        """The result in a folder that `save` wrote; its images are on the CPU.

        Raises:
            ResultError: for a folder without one, or a damaged one.
        """
        check_type("`folder`", folder, str | Path, ResultError)
        try:
            content = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
            x_adv = load_file(Path(folder) / TENSORS)["x_adv"]
            outcomes = [
                ImageOutcome(**(row | {"eps_outcomes": [EpsOutcome(**row["eps_outcomes"][0], image=image)]}))
                for row, image in zip(content["outcomes"], x_adv, strict=True)
            ]
            costs = {name: Cost(**cost) for name, cost in content["costs"].items()}
            return cls.of_outcomes(outcomes, costs, content["attack"], content["norm"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ResultError(f"{folder} holds no whole result of `clipguard.attack` ({first_line(error)}).") from error

    def save(self, folder: str | Path) -> Path:
        """Write the adversarial images as safetensors and everything else as JSON, which `load` reads.

        Args:
            folder: a new or empty one.

        Returns:
            The folder.

        Raises:
            OutputError: if it holds something, or cannot be written; nothing is overwritten.
        """
        check_type("`folder`", folder, str | Path, OutputError)
        content = {
            "schema": SCHEMA,
            "attack": self.attack,
            "norm": self.norm,
            "outcomes": [_without_images(outcome) for outcome in self.outcomes],
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
        }
        with OutputFolder(Path(folder), option="`folder`", whole=True) as place:
            tensors = {"x_adv": self.x_adv.cpu().contiguous()}
            record = json.dumps(content, indent=2, allow_nan=False) + "\n"
            place.write_files({TENSORS: save(tensors), RECORD: record.encode()})
        return Path(folder)

    @property
    def eps(self) -> float:
        """In pixels of [0,1]."""
        return self.outcomes[0].eps_outcomes[0].eps

    @property
    def robust_accuracy(self) -> float:
        """Share of the images that no attack broke."""
        return self.robust.float().mean().item()

    def to_frame(self) -> pd.DataFrame:
        """One row an image, with columns as in samples.parquet (docs/results.md); eps and distance in pixels."""
        rows = [
            {
                "index": outcome.index,
                "label": outcome.label,
                "eps": at_eps.eps,
                "clean_pred": outcome.clean_prediction,
                "adv_pred": at_eps.prediction,
                "robust": at_eps.robust,
                "broken_by": at_eps.broken_by,
                "distance": at_eps.distance,
                "margin": at_eps.margin,
            }
            for outcome in self.outcomes
            for at_eps in outcome.eps_outcomes
        ]
        return pd.DataFrame(rows).astype({"broken_by": "string"})

    def to_markdown(self) -> str:
        """Clean and robust accuracy in percent, with 95 % Wilson intervals, as a table of one row."""
        return "\n".join(markdown_table(HEADINGS, [self._row()], "llrrrl")) + "\n"

    def _row(self) -> list[str]:
        n, broken_by = len(self.outcomes), Counter(name for name in self.broken_by if name)
        return [
            self.attack,
            f"{self.norm} {show_eps(one_eps(self.eps, self.norm).typed, self.norm)}",
            str(n),
            _percent(n - broken_by["clean"], n),
            _percent(int(self.robust.sum()), n),
            ", ".join(f"{name} {count}" for name, count in broken_by.items()) or "–",
        ]

    def __repr__(self) -> str:
        attack, eps, n, clean, robust, broken_by = self._row()
        return f"AttackResult: {attack} at {eps}, n {n}: clean {clean} %, robust {robust} %; broken by: {broken_by}"

    def _repr_html_(self) -> str:
        return html_table(HEADINGS, [self._row()], "llrrrl", ["Accuracy in %, with 95 % Wilson intervals."])


def _percent(correct: int, n: int) -> str:
    return percent_with_interval(correct / n, *wilson_interval(correct, n))


def _without_images(outcome: ImageOutcome) -> dict[str, Any]:
    """Plain JSON types; the images are a file of their own."""
    bare = [replace(one, image=None) for one in outcome.eps_outcomes]
    content = asdict(replace(outcome, eps_outcomes=bare))
    for one in content["eps_outcomes"]:
        del one["image"]
    return content
