"""What may be given in place of a name: loaded models, modules, data sets, arrays, attacks and recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from clipguard.attacks.base import Attack
from clipguard.attacks.recipes import Recipe, check_options
from clipguard.attacks.registry import SUITES, attack_class
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.core.errors import AttackError, ClipguardError
from clipguard.data import ImageDataset, ZeroShotDataset
from clipguard.data.classes.lists import parse_classes
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
    if class_names is None or isinstance(class_names, str):
        raise AttackError("A loaded model needs `class_names`, a list in the order of the labels' numbers.")
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
        check_options(attack.full_name, type(attack)().options(), _changed_options(attack))
        return Recipe(attack.full_name, (attack,))
    return open_recipe(attack)


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
    "model": ("text",),
    "module": ("text", "logit_scale"),
}


class Named:
    """Models, data sets and attacks as names for a plan, and the objects that the names stand for."""

    def __init__(self, models: Any, datasets: Any, attacks: Any, options: Mapping[str, Any]) -> None:
        """What `clipguard.bench` was given.

        Raises:
            ClipguardError: for options that an object has settled already.
        """
        self._models: dict[str, LoadedModel] = {}
        self._datasets: dict[str, Callable[[BenchPlan], ZeroShotDataset]] = {}
        self._recipes: dict[str, Recipe] = {}
        self._options = options
        self.models = [self._model(item) for item in _members(models)]
        self._needs_text = any(not isinstance(self._models.get(str(m)), ModuleModel) for m in self.models or ["tiny"])
        self.datasets = [self._dataset(item) for item in _members(datasets)]
        self.attacks = attacks if isinstance(attacks, str) else [self._attack(item) for item in _members(attacks)]

    @property
    def objects(self) -> Objects:
        """Those that are in memory."""
        return Objects(self._models, self._datasets, self._recipes)

    def _model(self, model: Any) -> Any:
        if isinstance(model, LoadedModel):
            self._refuse("model", "load_model")
            return _keep(self._models, model.info.name, model)
        if isinstance(model, nn.Module):
            self._refuse("module", "")
            name = _free_name(self._models, type(model).__name__)
            return _keep(self._models, name, ModuleModel(model, name))
        if model is not None and not isinstance(model, (str, Path)):
            raise ClipguardError(f"`models` takes names, what `load_model` gives, and modules, not {_kind(model)}.")
        return model

    def _dataset(self, data: Any) -> Any:
        if isinstance(data, ZeroShotDataset):
            self._refuse("dataset", "load_dataset")
            if self._options.get("protocol") is not None:
                raise ClipguardError("`protocol` says how a data set is opened: name the data set, and it will be.")
            return _keep(self._datasets, data.name, lambda _plan: data)
        name = _free_name(self._datasets, "in-memory")
        if _is_table(data):
            return _keep(self._datasets, name, lambda plan: _open_table(data, name, plan))
        if isinstance(data, tuple) and len(data) in (2, 3) and not isinstance(data[0], (str, Path)):
            return _keep(self._datasets, name, lambda plan: self._open_arrays(data, name, plan))
        if data is not None and not isinstance(data, (str, Path)):
            what = "names, what `load_dataset` gives, a datasets.Dataset, or tuples (images, labels[, class_names])"
            raise ClipguardError(f"`datasets` takes {what}, not {_kind(data)}.")
        return data

    def _open_arrays(self, data: tuple[Any, ...], name: str, plan: BenchPlan) -> ZeroShotDataset:
        names = data[2] if len(data) == 3 else None
        if isinstance(names, str):
            raise ClipguardError(f"{name}: class names are a list, as in ['cat', 'dog'], not one text.")
        if names is None and plan.classes:
            names = parse_classes(str(plan.classes)).names
        if names is None and self._needs_text:
            raise ClipguardError(f"{name}: these models need class names: (images, labels, class_names), or `classes`.")
        images, labels = data[0], data[1]
        return dataset_of_arrays(images, labels, names, name=name, templates=plan.templates, decode=plan.decode)

    def _refuse(self, kind: str, where: str) -> None:
        for option in SETTLED[kind]:
            if option in self._options:
                cure = f"`{where}` settles it: give it there" if where else "a module has none: leave it out"
                raise ClipguardError(f"`{option}` is for names; {cure}.")

    def _attack(self, attack: Any) -> Any:
        if not isinstance(attack, (Attack, Recipe)):
            return attack
        recipe = as_recipe(attack)
        if isinstance(attack, Attack):
            return _keep(self._recipes, spell_attack(attack), replace(recipe, name=spell_attack(attack)))
        if attack_class(recipe.name) or recipe.name in SUITES or not recipe.name:
            raise ClipguardError(f"{recipe.name!r} is an attack of its own; give the recipe another name.")
        return _keep(self._recipes, recipe.name, recipe)


def _open_table(table: Any, name: str, plan: BenchPlan) -> ZeroShotDataset:
    return dataset_of_table(
        table,
        name,
        split=plan.split,
        image_column=plan.image_column,
        label_column=plan.label_column,
        classes=plan.classes,
        templates=plan.templates,
        class_names=plan.class_names,
        decode=plan.decode,
    )


def _members(value: Any) -> list[Any]:
    """One thing is a list of one; a pair of arrays is one data set."""
    if value is None:
        return []
    is_pair = isinstance(value, tuple) and len(value) in (2, 3) and hasattr(value[0], "ndim")
    if is_pair or isinstance(value, (str, Path, nn.Module, LoadedModel, ImageDataset)) or _is_table(value):
        return [value]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _is_table(value: Any) -> bool:
    """Whether it is a `datasets.Dataset`, told without importing that library."""
    is_of_library = type(value).__module__.partition(".")[0] == "datasets"
    return is_of_library and hasattr(value, "features") and hasattr(value, "__getitem__")


def _keep(known: dict[str, Any], name: str, value: Any) -> str:
    if name in known:
        raise ClipguardError(f"Two objects have the name {name!r}; give one of them another.")
    known[name] = value
    return name


def _free_name(known: Mapping[str, Any], name: str) -> str:
    """`name`, or `name-2` and so on where it is taken."""
    return name if name not in known else _free_name(known, f"{name}-{len(known) + 1}")


def _changed_options(attack: Attack) -> dict[str, Any]:
    """The options that are not at their defaults."""
    defaults = type(attack)().options()
    return {name: value for name, value in attack.options().items() if value != defaults[name]}


def spell_attack(attack: Attack) -> str:
    """An attack as it is written on the command line: `apgd-ce(iterations=50)`, without options at their defaults."""
    changed = _changed_options(attack)
    if attack.steps_in_name:
        changed.pop("iterations", None)
    options = ",".join(f"{name}={str(value).lower()}" for name, value in changed.items())
    return f"{attack.full_name}({options})" if options else attack.full_name
