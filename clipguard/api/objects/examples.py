"""What `clipguard.attack` and `clipguard.doctor` are given, as a module, pixels and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipguard.api.objects.data import open_in_memory
from clipguard.api.objects.kinds import IN_MEMORY, Model, in_memory, is_arrays, is_table, shown
from clipguard.api.objects.models import as_module, require_class_names
from clipguard.attacks.inputs import Array
from clipguard.core.checking import check_type
from clipguard.core.errors import AttackError
from clipguard.data import ImageDataset, ZeroShotDataset, load_dataset
from clipguard.models.loading import LoadedModel, load_model
from clipguard.models.preprocessing import to_native_pixels

Labels = Tensor | Array | Sequence[int] | None
Samples = int | Literal["all"] | None


@dataclass(frozen=True)
class Text:
    """What the classes are called: `class_names` of images that come without, and the prompts of loaded models."""

    class_names: Sequence[str] | None
    templates: str | Sequence[str]


@dataclass(frozen=True)
class Examples:
    """A model and what it is attacked on.

    Attributes:
        model: from pixels to logits.
        images: (N, C, H, W) in [0,1], unless they were given otherwise.
        labels: (N,) class numbers.
        indices: of the images in their data set, N of them, which seed their random numbers; None: their positions.
        text: what their classes are called.
        resized: whether a loaded model has resized them.
        loaded: the model as it was loaded; None for a module.
    """

    model: nn.Module
    images: Any
    labels: Any
    indices: Sequence[int] | None
    text: Text
    resized: bool = False
    loaded: LoadedModel | None = None

    def other(self, model: Model) -> nn.Module:
        """Another model for the same images; a loaded one resizes inside where they were resized for the first."""
        loaded = load_model(model, device=self.images.device) if isinstance(model, (str, Path)) else model
        if self.resized and isinstance(loaded, LoadedModel):
            names = require_class_names(self.text.class_names)
            return loaded.classifier(names, list(self.text.templates), "native")
        return as_module(loaded, self.text.class_names, self.text.templates)


def open_examples(
    model: Model, images: Any, labels: Labels, text: Text, n_samples: Samples, *, default: int, seed: int
) -> Examples:
    """Tensors as they are, or images of a data set in memory or by name.

    Args:
        model: a module from pixels to logits, what `load_model` gave, or a name.
        images: (N, C, H, W) in [0,1], or a data set.
        labels: (N,) class numbers; None for a data set.
        text: what the classes are called.
        n_samples: images of a data set, a seeded stratified subset, or "all"; None: `default`.
        default: at least 1.
        seed: of the subset.

    Raises:
        ClipguardError: for what cannot be opened, and for what does not go together.
    """
    if is_arrays(images) or is_table(images) or isinstance(images, (str, Path, ImageDataset)):
        if labels is not None:
            raise AttackError("A data set has labels of its own: leave `labels` out.")
        n = default if n_samples is None else None if n_samples == "all" else n_samples
        if n is not None:
            check_type("`n_samples`", n, int, AttackError)
        if not isinstance(model, (str, Path, LoadedModel, nn.Module)):
            raise AttackError(f"The model must be a torch.nn.Module, a name, or of `load_model`, not {shown(model)}.")
        data = _open_dataset(images, text, needs_text=not isinstance(model, nn.Module))
        return _of_dataset(load_model(model) if isinstance(model, (str, Path)) else model, data, n, seed)
    if labels is None:
        raise AttackError("Images need `labels`, one class number each; only a data set has its own.")
    if n_samples is not None:
        raise AttackError("`n_samples` is for data sets: leave it out, and give the images that are meant.")
    if isinstance(model, (str, Path)):
        require_class_names(text.class_names)
        model = load_model(model, device=images.device if isinstance(images, Tensor) else "cpu")
    loaded = model if isinstance(model, LoadedModel) else None
    return Examples(as_module(model, text.class_names, text.templates), images, labels, None, text, loaded=loaded)


def _open_dataset(given: Any, text: Text, *, needs_text: bool) -> ZeroShotDataset:
    """The data set with its own names and prompts, where `text` does not say others."""
    names, templates = text.class_names, text.templates
    one = templates if isinstance(templates, str) else "ensemble"
    if isinstance(given, ZeroShotDataset) and (names is not None or templates != "ensemble"):
        raise AttackError("`class_names` and `templates` are settled by `load_dataset`: give them there.")
    if is_arrays(given) and len(given) == 2 and names is not None:
        given, names = (*given, names), None
    if names is not None:
        raise AttackError("`class_names` is for images without names; a data set has its own. Leave it out.")
    if in_memory(given, "`images`"):
        data = open_in_memory(given, IN_MEMORY, {"templates": one}, needs_text=needs_text)
    else:
        data = load_dataset(given, templates=one)
    return data if isinstance(templates, str) else replace(data, templates=list(templates))


def _of_dataset(model: nn.Module | LoadedModel, data: ZeroShotDataset, n: int | None, seed: int) -> Examples:
    """Chosen images as the model takes them: resized for a loaded model, as they are for a module."""
    indices = data.subset(n, seed).tolist()
    if isinstance(model, LoadedModel):
        preprocess, device = model.preprocess(), model.device
    else:
        first = next((t for t in (*model.parameters(), *model.buffers())), None)
        preprocess, device = to_native_pixels, torch.device("cpu") if first is None else first.device
    pixels = [preprocess(data.image(index)) for index in indices]
    sizes = sorted({tuple(image.shape[1:]) for image in pixels})
    if len(sizes) > 1:
        few = ", ".join(f"{height}x{width}" for height, width in sizes[:3])
        raise AttackError(
            f"{data.name} has images of {len(sizes)} sizes ({few}), and a module takes them as they are: give images of"
            " one size, or a model of `load_model`, which resizes them."
        )
    text = Text(data.class_names, data.templates)
    module = as_module(model, text.class_names, text.templates)
    labels = torch.from_numpy(data.labels[indices])
    loaded = model if isinstance(model, LoadedModel) else None
    return Examples(module, torch.stack(pixels).to(device), labels, indices, text, loaded is not None, loaded)
