"""What may be given in place of a name: loaded models, modules, attacks and recipes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from clipguard.attacks.base import Attack
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.recipe_files import open_recipe
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
    if class_names is None:
        raise AttackError("A loaded model needs `class_names`, in the order of the labels' numbers.")
    prompts = resolve_templates(templates, PHOTO) if isinstance(templates, str) else list(templates)
    return model.classifier(list(class_names), prompts)


def as_recipe(attack: str | Attack | Recipe) -> Recipe:
    """A recipe from a name or file, one attack, or itself.

    Raises:
        AttackError: for anything else, and an unknown name.
    """
    if isinstance(attack, Recipe):
        return attack
    if isinstance(attack, Attack):
        return Recipe(attack.full_name, (attack,))
    return open_recipe(attack)
