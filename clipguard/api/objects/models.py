"""Models from Python as modules from pixels to logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from clipguard.core.errors import AttackError
from clipguard.data.templates import PHOTO, resolve_templates
from clipguard.models.loading import LoadedModel


def as_module(
    model: nn.Module | LoadedModel, class_names: Sequence[str] | None, templates: str | Sequence[str]
) -> nn.Module:
    """A module from pixels to logits: the model itself, or the classifier of a loaded one over `class_names`.

    Raises:
        AttackError: for a loaded model without class names.
    """
    if not isinstance(model, LoadedModel):
        return model
    return model.classifier(require_class_names(class_names), as_prompts(templates))


def as_prompts(templates: str | Sequence[str]) -> list[str]:
    """Prompts with {} of a name such as "ensemble", or as they are."""
    return resolve_templates(templates, PHOTO) if isinstance(templates, str) else list(templates)


def require_class_names(class_names: Sequence[str] | None) -> list[str]:
    """The names as a list. Raises AttackError where there are none."""
    if class_names is None or isinstance(class_names, str):
        raise AttackError("A loaded model needs `class_names`, a list in the order of the labels' numbers.")
    return list(class_names)
