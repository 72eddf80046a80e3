"""What may be given in place of a name: loaded models, modules, data sets, arrays, attacks and recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from clipguard.attacks.base import Attack
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.core.errors import AttackError, ClipguardError
from clipguard.data import ImageDataset, ZeroShotDataset
from clipguard.data.in_memory import dataset_of_arrays
from clipguard.data.sources import dataset_of_table
from clipguard.data.templates import PHOTO, resolve_templates
from clipguard.models.loading import LoadedModel
from clipguard.models.module_model import ModuleModel

Model = str | Path | LoadedModel | nn.Module
Data = Any  # a name, ZeroShotDataset, datasets.Dataset, (images, labels) or (images, labels, class_names)
AttackLike = str | Attack | Recipe


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


class Named:
    """Models, data sets and attacks as names for a plan, and the objects that the names stand for."""

    def __init__(self, models: Any, datasets: Any, attacks: Any, options: Mapping[str, Any]) -> None:
        """What `clipguard.bench` was given; `options` has the prompts of data sets in memory."""
        self._models: dict[str, LoadedModel] = {}
        self._datasets: dict[str, ZeroShotDataset] = {}
        self._recipes: dict[str, Recipe] = {}
        self._options = options
        self.models = [self._model(item) for item in _members(models)]
        self.datasets = [self._dataset(item) for item in _members(datasets)]
        self.attacks = [self._attack(item) for item in _members(attacks)]

    @property
    def objects(self) -> Objects:
        """Those that are in memory."""
        return Objects(self._models, self._datasets, self._recipes)

    def _model(self, model: Any) -> Any:
        if isinstance(model, LoadedModel):
            return _keep(self._models, model.info.name, model)
        if isinstance(model, nn.Module):
            name = _free_name(self._models, type(model).__name__)
            return _keep(self._models, name, ModuleModel(model, name))
        return model

    def _dataset(self, data: Any) -> Any:
        if isinstance(data, ZeroShotDataset):
            return _keep(self._datasets, data.name, data)
        name = _free_name(self._datasets, "in-memory")
        if _is_table(data):
            names = ("split", "image_column", "label_column", "classes", "templates", "class_names", "decode")
            options = {key: value for key, value in self._options.items() if key in names}
            return _keep(self._datasets, name, dataset_of_table(data, name, **options))
        if isinstance(data, tuple) and len(data) in (2, 3) and not isinstance(data[0], str):
            how = {key: value for key, value in self._options.items() if key in ("templates", "decode")}
            return _keep(self._datasets, name, dataset_of_arrays(*data, name=name, **how))
        return data

    def _attack(self, attack: Any) -> Any:
        if isinstance(attack, (Attack, Recipe)):
            recipe = as_recipe(attack)
            spelled = recipe.name if isinstance(attack, Recipe) else spell_attack(attack)
            return _keep(self._recipes, spelled, replace(recipe, name=spelled))
        return attack


def _members(value: Any) -> list[Any]:
    """One thing is a list of one; a pair of arrays is one data set."""
    if value is None:
        return []
    is_pair = isinstance(value, tuple) and len(value) in (2, 3) and hasattr(value[0], "ndim")
    if is_pair or isinstance(value, (str, Path, nn.Module, LoadedModel, ImageDataset)) or _is_table(value):
        return [value]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_table(value: Any) -> bool:
    """Whether it is a `datasets.Dataset`, told without importing that library."""
    return type(value).__module__.partition(".")[0] == "datasets" and hasattr(value, "features")


def _keep(known: dict[str, Any], name: str, value: Any) -> str:
    if name in known:
        raise ClipguardError(f"Two objects have the name {name!r}; give one of them another.")
    known[name] = value
    return name


def _free_name(known: Mapping[str, Any], name: str) -> str:
    """`name`, or `name-2` and so on where it is taken."""
    return name if name not in known else _free_name(known, f"{name}-{len(known) + 1}")


def spell_attack(attack: Attack) -> str:
    """An attack as it is written on the command line: `apgd-ce(iterations=50)`, without options at their defaults."""
    defaults = type(attack)().options()
    changed = {name: value for name, value in attack.options().items() if value != defaults[name]}
    if attack.steps_in_name:
        changed.pop("iterations", None)
    options = ",".join(f"{name}={str(value).lower()}" for name, value in changed.items())
    return f"{attack.full_name}({options})" if options else attack.full_name
