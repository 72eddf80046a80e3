"""From a data set's images to what is attacked: at which resolution, resized how, by which classifier."""

from __future__ import annotations

from collections.abc import Callable

from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Resize

from clipguard.benchmark.plan import BenchPlan
from clipguard.data import ZeroShotDataset
from clipguard.data.registry import find_entry
from clipguard.models import ZeroShotClassifier
from clipguard.models.loading import LoadedModel, to_native_pixels


def prepare(
    plan: BenchPlan, model: LoadedModel, dataset: ZeroShotDataset
) -> tuple[ZeroShotClassifier, Callable[[Image], Tensor]]:
    """The classifier of a data set, and what turns its images into the pixels that are attacked."""
    entry = find_entry(dataset.name) if plan.resolution == "mixed" or plan.resize == "crop256-squash" else None
    small = entry is not None and entry.native
    resolution = plan.resolution if plan.resolution != "mixed" else "native" if small else "model"
    classifier = model.classifier(dataset.class_names, dataset.templates, resolution)
    if plan.logit_scale is not None:
        classifier.logit_scale.fill_(plan.logit_scale)
    if plan.resize == "model" or resolution == "native":
        return classifier, model.preprocess(resolution)
    squash = small and plan.resize == "crop256-squash"
    return classifier, bilinear_resize(model.preprocessing.image_size, squash=squash)


def bilinear_resize(size: tuple[int, int], *, squash: bool = False) -> Callable[[Image], Tensor]:
    """A PIL image -> pixels (3, H, W) in [0,1] as TeCoA's papers resize: the shorter edge to 256/224 of the model's
    `size` (H, W), then the centre; `squash`: both edges to `size`.
    """
    steps = [Resize(list(size))] if squash else [Resize(round(min(size) * 256 / 224)), CenterCrop(list(size))]
    return Compose([*steps, to_native_pixels])  # type: ignore[no-any-return]
