"""What a bench run or a comparison is given, as names for its plan and the objects that the names stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from clipguard.api.objects.attacks import as_recipe, spell_attack
from clipguard.api.objects.data import open_in_memory
from clipguard.api.objects.kinds import IN_MEMORY, free_name, in_memory, is_arrays, members, shown
from clipguard.attacks.base import Attack
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.registry import SUITES, attack_class
from clipguard.benchmark.objects import Objects, data_settings
from clipguard.benchmark.plan import BenchPlan
from clipguard.core.errors import ClipguardError
from clipguard.data import ZeroShotDataset, expand_groups
from clipguard.models.loading import LoadedModel
from clipguard.models.module_model import ModuleModel

SETTLED = {  # settings of a plan that an object has already
    "dataset": (
        "split",
        "classes",
        "class_names",
        "templates",
        "decode",
        "duplicate_names",
        "image_column",
        "label_column",
    ),
    "arrays": ("split", "class_names", "image_column", "label_column", "data_root"),
    "model": ("text",),
    "module": ("text", "logit_scale"),
}
NONE = {"module": "a module has", "arrays": "arrays have"}


class Named:
    """Models, data sets and attacks as names for a plan, and the objects that the names stand for."""

    def __init__(self, models: Any, datasets: Any, attacks: Any, options: Mapping[str, Any]) -> None:
        """What `clipguard.bench` or `clipguard.compare` was given.

        Raises:
            ClipguardError: for options that an object has settled already.
        """
        self._models: dict[str, LoadedModel] = {}
        self._datasets: dict[str, Callable[[BenchPlan], ZeroShotDataset]] = {}
        self._recipes: dict[str, Recipe] = {}
        self._options = options
        self._names: dict[int, str] = {}  # of objects, by id: one that is given twice has one name
        given, sets = members(models), members(datasets)
        self._typed = {*_texts(given), *expand_groups(_texts(sets))}  # no object takes the name of what is opened
        self.models = [self._model(item) for item in given]
        self._needs_text = any(not isinstance(self._models.get(str(m)), ModuleModel) for m in self.models or ["tiny"])
        self.datasets = [self._dataset(item) for item in sets]
        self.attacks = attacks if isinstance(attacks, str) else [self._attack(item) for item in members(attacks)]

    @property
    def objects(self) -> Objects:
        """Those that are in memory."""
        return Objects(self._models, self._datasets, self._recipes)

    def _model(self, model: Any) -> Any:
        if isinstance(model, LoadedModel):
            self._refuse("model", "load_model")
            name = self._name(model, model.info.name, self._models)
            self._models.setdefault(name, model if name == model.info.name else model.copy(name))
            return name
        if isinstance(model, nn.Module):
            self._refuse("module", "")
            name = self._name(model, type(model).__name__, self._models)
            if name not in self._models:
                self._models[name] = ModuleModel(model, name)
            return name
        if model is not None and not isinstance(model, (str, Path)):
            raise ClipguardError(f"`models` takes names, what `load_model` gives, and modules, not {shown(model)}.")
        return model

    def _dataset(self, data: Any) -> Any:
        if not in_memory(data, "`datasets`"):
            return data
        if isinstance(data, ZeroShotDataset):
            self._refuse("dataset", "load_dataset")
            if self._options.get("protocol") is not None:
                raise ClipguardError("`protocol` says how a data set is opened: name the data set, and it will be.")
        elif is_arrays(data):
            self._refuse("arrays", "")
        name = self._name(data, data.name if isinstance(data, ZeroShotDataset) else IN_MEMORY, self._datasets)
        self._datasets[name] = lambda plan: open_in_memory(data, name, data_settings(plan), needs_text=self._needs_text)
        return name

    def _name(self, item: Any, name: str, known: Mapping[str, Any]) -> str:
        """The name of an object: its own, where nothing else has it."""
        return self._names.setdefault(id(item), free_name(name, {*known, *self._typed}))

    def _refuse(self, kind: str, where: str) -> None:
        for option in SETTLED[kind]:
            if option in self._options:
                cure = f"`{where}` settles it: give it there" if where else f"{NONE[kind]} none: leave it out"
                raise ClipguardError(f"`{option}` is for names; {cure}.")

    def _attack(self, attack: Any) -> Any:
        if not isinstance(attack, (Attack, Recipe)):
            return attack
        recipe = as_recipe(attack)
        if isinstance(attack, Attack):
            return self._keep(replace(recipe, name=spell_attack(attack)))
        if attack_class(recipe.name) or recipe.name in SUITES or not recipe.name:
            raise ClipguardError(f"{recipe.name!r} is an attack of its own; give the recipe another name.")
        return self._keep(recipe)

    def _keep(self, recipe: Recipe) -> str:
        if recipe.name in self._recipes:
            raise ClipguardError(f"Two attacks have the name {recipe.name!r}; give one of them another.")
        self._recipes[recipe.name] = recipe
        return recipe.name


def _texts(items: list[Any]) -> list[str]:
    return [str(item) for item in items if isinstance(item, (str, Path))]
