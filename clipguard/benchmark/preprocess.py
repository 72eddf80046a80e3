"""From a data set's images to what is attacked: at which resolution, resized how, by which classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Resize

from clipguard.benchmark.plan import BenchPlan
from clipguard.data import ZeroShotDataset
from clipguard.data.registry import find_entry
from clipguard.models import ZeroShotClassifier
from clipguard.models.classifier import Resolution
from clipguard.models.loading import LoadedModel
from clipguard.models.preprocessing import to_native_pixels


def prepare(
    plan: BenchPlan, model: LoadedModel, dataset: ZeroShotDataset
) -> tuple[ZeroShotClassifier, Callable[[Image], Tensor]]:
    """The classifier of a data set, and what turns its images into the pixels that are attacked."""
    resolution, resize = choose_resize(plan, dataset.name)
    classifier = model.classifier(dataset.class_names, dataset.templates, resolution, duplicates=plan.duplicate_names)
    if plan.logit_scale is not None and isinstance(classifier, ZeroShotClassifier):
        classifier.logit_scale.fill_(plan.logit_scale)
    if resize == "model" or model.info.format == "module":  # a module takes images as they are
        return classifier, model.preprocess(resolution)
    return classifier, bilinear_resize(model.preprocessing.image_size, squash=resize == "squash")


def choose_resize(plan: BenchPlan, dataset: str) -> tuple[Resolution, Literal["model", "crop256", "squash"]]:
    """Where a data set's images are attacked, and how they are resized before: what `mixed` and the like come to."""
    entry = find_entry(dataset) if plan.resolution == "mixed" or plan.resize == "crop256-squash" else None
    small = entry is not None and entry.native
    resolution: Resolution = plan.resolution if plan.resolution != "mixed" else "native" if small else "model"
    if plan.resize == "model" or resolution == "native":
        return resolution, "model"
    return resolution, "squash" if small and plan.resize == "crop256-squash" else "crop256"


def bilinear_resize(size: tuple[int, int], *, squash: bool = False) -> Callable[[Image], Tensor]:
    """A PIL image -> pixels (3, H, W) in [0,1] as TeCoA's papers resize: the shorter edge to 256/224 of the model's
    `size` (H, W), then the centre; `squash`: both edges to `size`.
    """
    steps = [Resize(list(size))] if squash else [Resize(round(min(size) * 256 / 224)), CenterCrop(list(size))]
    return Compose([*steps, to_native_pixels])  # type: ignore[no-any-return]
