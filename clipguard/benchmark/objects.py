"""What a run is given as it is, beside the names that it opens itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.core.errors import ModelError
from clipguard.data import ZeroShotDataset, load_dataset
from clipguard.models import parse_source
from clipguard.models.loading import LoadedModel, load_model
from clipguard.models.prompts.files import read_prompts, with_prompts


@dataclass(frozen=True)
class Objects:
    """Objects of Python by the names that stand for them in the plan; every other name is opened.

    Attributes:
        models: checkpoints in memory, modules among them.
        datasets: data sets in memory, which the plan's prompts and class names are given to.
        recipes: attacks.
    """

    models: Mapping[str, LoadedModel] = field(default_factory=dict)
    datasets: Mapping[str, Callable[[BenchPlan], ZeroShotDataset]] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Those of all objects."""
        return [*self.models, *self.datasets, *self.recipes]

    def check_model_name(self, name: str, setting: str = "model") -> None:
        """Raises ModelError for a name, given as a setting, that names no model."""
        if name in self.models:
            return
        try:
            parse_source(name)
        except ModelError as error:
            raise ModelError(str(error).replace("`model`", f"`{setting}`")) from error

    def model(self, name: str, plan: BenchPlan, device: str = "cpu") -> LoadedModel:
        """A model on a device, with the plan's learned prompts if it has any."""
        if plan.prompts is None:
            return self.bare_model(name, plan, device)
        prompts = read_prompts(plan.prompts)
        if name in self.models:  # which stays as it is
            return with_prompts(self.models[name].copy().to(device), prompts)
        return with_prompts(self.bare_model(name, plan, device), prompts)

    def bare_model(self, name: str, plan: BenchPlan, device: str = "cpu") -> LoadedModel:
        """The same without learned prompts, which belong to the models that are measured."""
        if name in self.models:
            return self.models[name].to(device)
        return load_model(name, device=device, text=plan.text)

    def recipe(self, name: str) -> Recipe:
        """An attack."""
        return self.recipes[name] if name in self.recipes else open_recipe(name)

    def dataset(self, name: str, plan: BenchPlan) -> ZeroShotDataset:
        """A data set as the plan asks for it."""
        if name in self.datasets:
            return self.datasets[name](plan)
        return load_dataset(name, data_root=plan.data_root, **data_settings(plan))


def data_settings(plan: BenchPlan) -> dict[str, Any]:
    """How a plan has data sets opened, as arguments of `load_dataset`, wherever the data is."""
    return {
        "split": plan.split,
        "image_column": plan.image_column,
        "label_column": plan.label_column,
        "classes": plan.classes,
        "templates": plan.templates,
        "class_names": plan.class_names,
        "duplicate_names": plan.duplicate_names,
        "decode": plan.decode,
    }
