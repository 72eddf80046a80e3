"""What a certification found: cells, per-image rows and its record, and the files they become (docs/certify.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict, get_type_hints

import pandas as pd

from clipguard.certification.smoothing import SmoothingTest
from clipguard.statistics.intervals import wilson_interval

SCHEMA = 1
CERTIFY, SAMPLES = "certify.json", "samples.parquet"


class CertifiedSample(TypedDict):
    """One row of samples.parquet: how one image fared under one sigma."""

    model: str
    dataset: str
    index: int
    label: int
    sigma: float
    base_pred: int  # the class without noise
    smoothed_pred: int  # the most frequent class of the selection's copies
    hits: int  # later copies taken for it
    samples: int  # later copies that were counted
    lower_bound: float  # of the probability of a hit; 0: abstained
    radius: float  # l2, in pixels of [0,1]
    abstained: bool
    certified: bool  # for the right class


_DTYPES = {str: "string", int: "int64", float: "float64", bool: "bool"}
COLUMNS = {name: _DTYPES[hint] for name, hint in get_type_hints(CertifiedSample).items()}


def certified_sample(
    model: str, dataset: str, test: SmoothingTest, index: int, label: int, base: int, selected: int, hits: int
) -> CertifiedSample:
    """The row of an image whose copies were counted."""
    certain = test.certifies(hits)
    return {
        "model": model,
        "dataset": dataset,
        "index": index,
        "label": label,
        "sigma": test.sigma,
        "base_pred": base,
        "smoothed_pred": selected,
        "hits": hits,
        "samples": test.samples_used(hits),
        "lower_bound": test.lower_bound(hits),
        "radius": test.radius(hits),
        "abstained": not certain,
        "certified": certain and selected == label,
    }


def sample_frame(rows: Iterable[CertifiedSample]) -> pd.DataFrame:
    """Rows with the documented columns and types."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)


@dataclass(frozen=True)
class Share:
    """How many of `n` images, with a 95 % Wilson interval."""

    correct: int
    accuracy: float
    ci_low: float
    ci_high: float

    @classmethod
    def of(cls, correct: int, n: int) -> Share:
        """Of n images, at least one."""
        return cls(correct, correct / n, *wilson_interval(correct, n))


@dataclass(frozen=True)
class AtRadius(Share):
    """Images whose right class is certified within at least `radius`."""

    radius: float


@dataclass(frozen=True)
class CertifiedCell:
    """One model on one data set under one sigma.

    Attributes:
        model, dataset, sigma: which.
        n: images.
        base: right without noise.
        smoothed: whose most frequent class under noise is right, of the few copies that select it.
        abstained: images without a certificate.
        average_radius: over all images, 0 where the right class has no certificate.
        largest_radius: that so many samples can prove.
        certified: at each radius of the table.
    """

    model: str
    dataset: str
    sigma: float
    n: int
    base: Share
    smoothed: Share
    abstained: int
    average_radius: float
    largest_radius: float
    certified: list[AtRadius]

    @classmethod
    def of(cls, rows: pd.DataFrame, radii: Sequence[float], largest: float) -> CertifiedCell:
        """Of rows of one model, data set and sigma."""
        n, first = len(rows), rows.iloc[0]
        return cls(
            str(first["model"]),
            str(first["dataset"]),
            float(first["sigma"]),
            n,
            Share.of(int((rows["base_pred"] == rows["label"]).sum()), n),
            Share.of(int((rows["smoothed_pred"] == rows["label"]).sum()), n),
            int(rows["abstained"].sum()),
            float((rows["radius"] * rows["certified"]).sum() / n),
            largest,
            [at_radius(rows, radius) for radius in radii],
        )


def at_radius(rows: pd.DataFrame, radius: float) -> AtRadius:
    """Certified accuracy of rows at a radius."""
    share = Share.of(int((rows["certified"] & (rows["radius"] >= radius)).sum()), len(rows))
    return AtRadius(**asdict(share), radius=radius)


@dataclass
class CertifyResult:
    """What `clipguard certify` found.

    Attributes:
        run: its record: everything that can change a number.
        cells: in the order in which they were finished.
        samples: a row an image and cell.
    """

    run: dict[str, Any]
    cells: list[CertifiedCell] = field(default_factory=list)
    samples: pd.DataFrame = field(default_factory=lambda: sample_frame([]))

    def add(self, rows: Iterable[CertifiedSample], radii: Sequence[float], largest: float) -> None:
        """Append a finished cell."""
        frame = sample_frame(rows)
        self.cells.append(CertifiedCell.of(frame, radii, largest))
        self.samples = pd.concat([self.samples, frame], ignore_index=True) if len(self.samples) else frame

    def to_dict(self) -> dict[str, Any]:
        """The content of `certify.json`."""
        return {"schema": SCHEMA, "run": self.run, "cells": [asdict(cell) for cell in self.cells]}

    def to_json(self) -> str:
        """`certify.json`, which is strict JSON: no NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_frame(self) -> pd.DataFrame:
        """One row a cell and radius: certified accuracy with its interval, beside what the cell has."""
        return pd.DataFrame(
            [
                {
                    "model": cell.model,
                    "dataset": cell.dataset,
                    "sigma": cell.sigma,
                    "n": cell.n,
                    "base_accuracy": cell.base.accuracy,
                    "smoothed_accuracy": cell.smoothed.accuracy,
                    "abstained": cell.abstained,
                    "average_radius": cell.average_radius,
                    **asdict(share),
                }
                for cell in self.cells
                for share in cell.certified
            ]
        )

    def to_markdown(self) -> str:
        """A table with intervals to paste into a paper or a pull request; what `certify.md` holds."""
        from clipguard.certification.table import to_markdown

        return to_markdown(self)

    def __repr__(self) -> str:
        from clipguard.certification.table import to_lines

        return "CertifyResult: " + "\n".join(to_lines(self))
