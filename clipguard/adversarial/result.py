"""What `clipguard attack` finds: adversarial images, exact and as 8-bit PNG, and what the model says of them."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from clipguard.benchmark.results.result import SCHEMA, Cell
from clipguard.core.eps import PIXEL
from clipguard.core.records.prediction import Prediction
from clipguard.core.records.run import RunRecord
from clipguard.core.records.samples import Sample, parquet_bytes, sample_frame

RUN_FILE = "run.json"
ATTACK_RECORD = "attack.json"  # of a result of `clipguard.attack`, which is another kind of folder
PREDICTED = "predicted"  # `run["labels"]` of image files without labels


@dataclass(frozen=True)
class AdversarialImage:
    """One image before and after the attack, and what the model says of it.

    Attributes:
        row: its line of `samples.parquet`.
        clean: (3, H, W) float32 in [0,1].
        x_adv: the same, under attack.
        before: of the clean image.
        after: of the adversarial image.
        png: of the adversarial image rounded to 8 bits.
        png_in_ball: whether that one is still within eps of the clean one.
    """

    row: Sample
    clean: Tensor
    x_adv: Tensor
    before: Prediction
    after: Prediction
    png: Prediction
    png_in_ball: bool

    @property
    def index(self) -> int:
        """Its row in the data set, or its position among the files."""
        return int(self.row["index"])

    @property
    def label(self) -> int:
        """The number of its class."""
        return int(self.row["label"])

    @property
    def broken(self) -> bool:
        """Right when clean, and an attack changed that."""
        return self.row["broken_by"] not in (None, "clean")

    @property
    def robust_as_png(self) -> bool:
        """Whether the rounded adversarial image is classified correctly."""
        return self.png.right


PredictionRecord = TypedDict("PredictionRecord", {"class": str, "confidence": float})


class ImageRecord(TypedDict):
    """One of `images` in run.json."""

    index: int
    label: str
    clean: PredictionRecord
    adversarial: PredictionRecord
    png: PredictionRecord
    robust: bool
    broken_by: str | None
    distance: float
    margin: float
    robust_as_png: bool
    png_in_ball: bool


class SummaryRecord(TypedDict):
    """Counts of images."""

    n: int
    clean_correct: int
    broken: int
    robust: int
    undone_by_png: int  # broken, but right again once rounded to 8 bits
    png_outside_ball: int


class AttackRunFile(TypedDict):
    """The content of run.json."""

    schema: int
    run: RunRecord
    cells: list[dict[str, Any]]  # `Cell` as JSON: clean, and under attack
    summary: SummaryRecord
    images: list[ImageRecord]


@dataclass
class AdversarialResult:
    """What `clipguard attack` found.

    Attributes:
        run: where it came from.
        class_names: of the data set, by number.
        cells: the clean one, and the attacked one.
        images: in the order of their indices.
    """

    run: RunRecord
    class_names: list[str]
    cells: list[Cell]
    images: list[AdversarialImage]

    def summary(self) -> SummaryRecord:
        """How many images held, fell, and came out otherwise as 8-bit files."""
        broken = [image for image in self.images if image.broken]
        return {
            "n": len(self.images),
            "clean_correct": self.cells[0].correct,
            "broken": len(broken),
            "robust": self.cells[1].correct,
            "undone_by_png": sum(image.robust_as_png for image in broken),
            "png_outside_ball": sum(not image.png_in_ball for image in self.images),
        }

    def samples(self) -> pd.DataFrame:
        """One row an image: the columns of bench's `samples.parquet`, and `robust_as_png`."""
        frame = sample_frame([image.row for image in self.images])
        return frame.assign(robust_as_png=[image.robust_as_png for image in self.images])

    def to_json(self) -> str:
        """`run.json`, which is strict JSON: no NaN."""
        content: AttackRunFile = {
            "schema": SCHEMA,
            "run": self.run,
            "cells": [asdict(cell) for cell in self.cells],
            "summary": self.summary(),
            "images": [self._describe(image) for image in self.images],
        }
        return json.dumps(content, indent=2, allow_nan=False)

    def _describe(self, image: AdversarialImage) -> ImageRecord:
        return {
            "index": image.index,
            "label": self.class_names[image.label],
            "clean": {"class": image.before.name, "confidence": image.before.confidence},
            "adversarial": {"class": image.after.name, "confidence": image.after.confidence},
            "png": {"class": image.png.name, "confidence": image.png.confidence},
            "robust": image.row["robust"],
            "broken_by": image.row["broken_by"],
            "distance": image.row["distance"],
            "margin": image.row["margin"],
            "robust_as_png": image.robust_as_png,
            "png_in_ball": image.png_in_ball,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The content of `adversarial.safetensors`: `x_adv` and `clean`, `indices` and `labels` (N,) int64.

        Images are (N, 3, H, W) float32; where sizes differ, one tensor each, `x_adv.<index>` and `clean.<index>`.
        """
        numbers = {"indices": [i.index for i in self.images], "labels": [i.label for i in self.images]}
        out = {name: torch.tensor(values) for name, values in numbers.items()}
        for name, images in (("x_adv", [i.x_adv for i in self.images]), ("clean", [i.clean for i in self.images])):
            if len({image.shape for image in images}) == 1:
                out[name] = torch.stack(images)
            else:
                pairs = zip(numbers["indices"], images, strict=True)
                out |= {f"{name}.{index}": image.contiguous() for index, image in pairs}
        return out

    def files(self, grid: bytes) -> dict[str, bytes]:
        """Every file by name, given the picture; `run.json` comes last, so where it is, the others are complete."""
        files = {
            "adversarial.safetensors": save(self.tensors()),
            "samples.parquet": parquet_bytes(self.samples()),
        }
        for image in self.images:
            files[f"png/{image.index}-clean.png"] = png_bytes(image.clean)
            files[f"png/{image.index}-adversarial.png"] = png_bytes(image.x_adv)
        return files | {"grid.png": grid, RUN_FILE: (self.to_json() + "\n").encode()}


def rounded(image: Tensor) -> Tensor:
    """The nearest 8-bit image: every value k/255, exactly as a PNG file of it reads back."""
    return (image * PIXEL).round().div(PIXEL)


def png_bytes(image: Tensor) -> bytes:
    """An image (3, H, W) in [0,1] as a PNG file."""
    pixels = (image * PIXEL).round().to(torch.uint8).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
