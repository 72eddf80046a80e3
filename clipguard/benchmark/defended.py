"""Runs of defended models: the defence of a plan around a model, its attacks, and the worst case of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.plan import BenchPlan
from clipguard.core.errors import DefenseError
from clipguard.core.records.run import DefenseRecord
from clipguard.data import ZeroShotDataset
from clipguard.defenses.attacking.threats import DefendedModel, ThreatRecipe, split_by_threat
from clipguard.defenses.base import Defense, Prompts
from clipguard.defenses.classifiers import defend
from clipguard.defenses.registry import BUILT_IN, parse_defenses, source_sha256
from clipguard.models.loading import LoadedModel
from clipguard.models.module_model import FORMAT

WORST = "worst case"  # what the cells of all threats together are called
VERSION = 3  # of what attacks on defended models find. Increase it with any change that can move a number of theirs


def recipes_of(plan: BenchPlan, recipes: Sequence[Recipe]) -> list[Recipe]:
    """The attacks of a plan; of a defended model, those of each threat.

    Raises:
        DefenseError: for several attacks on a defended model.
    """
    if plan.defense is None:
        return list(recipes)
    if len(recipes) > 1:
        raise DefenseError("With a `defense`, `attacks` is one attack, or several joined by +, as apgd-ce+apgd-t.")
    return split_by_threat(recipes[0], plan.threats)


def prompts_of(model: LoadedModel, class_names: Sequence[str], templates: Sequence[str]) -> Prompts | None:
    """The text side of a model for defences that tune prompts.

    None for a module, and where text is tuned beside the weights or prompts are learned: these are not what the text
    tower says of the names.
    """
    has_text = model.info.format != FORMAT and model.text_map is None and model.prompts is None
    return Prompts(model.model, model.tokenizer, class_names, templates) if has_text else None


@dataclass
class DefenseOfPlan:
    """The defence of a plan, around one model after the other.

    Attributes:
        plan: of the run, which has a defence.
        open_model: gives a further model by its name.
    """

    plan: BenchPlan
    open_model: Callable[[str], LoadedModel]
    _others: dict[str, LoadedModel] = field(default_factory=dict, init=False)

    @property
    def defenses(self) -> tuple[Defense, ...]:
        """Of the plan; an image meets the first of them first."""
        return parse_defenses(self.plan.defense or "")

    def around(self, model: LoadedModel, classifier: nn.Module, dataset: ZeroShotDataset) -> DefendedModel:
        """A classifier of a model with the defences around it. Raises DefenseError where one cannot stand there."""
        names, templates = dataset.class_names, dataset.templates
        prompts = prompts_of(model, names, templates)
        duplicates = self.plan.duplicate_names
        others = {
            # They resize inside, so that they take the images of the other's size.
            name: other.classifier(names, templates, "native", duplicates=duplicates)
            for name, other in self._further(self.plan.transfer_from).items()
        }
        plan, defended = self.plan, defend(classifier, self.defenses, prompts)
        return DefendedModel(classifier, defended, plan.seed, plan.votes, plan.draws, others)

    def key(self, recipe: Recipe) -> dict[str, Any]:
        """What of it can change an image's outcome under a recipe, as plain JSON types."""
        key: dict[str, Any] = {"version": VERSION, "chain": [defense.parameters() for defense in self.defenses]}
        others = [type(defense) for defense in self.defenses if type(defense) not in BUILT_IN]
        if others:  # which may be edited
            key["sources"] = [source_sha256(kind) for kind in others]
        if any(defense.random for defense in self.defenses):
            key |= {"votes": self.plan.votes, "draws": self.plan.draws}
        if isinstance(recipe, ThreatRecipe):
            key["threat"] = recipe.threat
            if recipe.threat == "black-box":
                further = self._further(self.plan.transfer_from).values()
                key["others"] = [[other.tower_sha256, other.info.sha256, other.info.text] for other in further]
        return key

    def _further(self, names: Sequence[str]) -> Mapping[str, LoadedModel]:
        for name in names:
            if name not in self._others:
                self._others[name] = self.open_model(name)
        return self._others


def defense_record(plan: BenchPlan, classes: int) -> DefenseRecord:
    """`run.defense` of the result files, for a plan with a defence and data sets with up to so many classes."""
    defenses = parse_defenses(plan.defense or "")
    return {
        "chain": [defense.parameters() for defense in defenses],
        "random": any(defense.random for defense in defenses),
        "threats": list(plan.threats),
        "votes": plan.votes,
        "draws": plan.draws,
        "transfer_from": list(plan.transfer_from),
        "passes": list(declared_passes(defenses, classes)),
    }


def declared_passes(defenses: Sequence[Defense], classes: int) -> tuple[int, int]:
    """Of the image tower, forward and backward, that an image takes at most, as the defences of a chain say."""
    forward, backward = 1, 0
    for defense in reversed(defenses):  # each pass of an outer one is one of what is inside
        own = defense.cost(classes)
        forward, backward = own[0] * forward, own[1] * forward + own[0] * backward
    return forward, backward


def worst_case(samples: pd.DataFrame) -> pd.DataFrame:
    """Rows of all threats on a model and a data set -> for each image and eps that of the first threat that broke it;
    where none did, that of the smallest margin.
    """
    ordered = samples.assign(order=range(len(samples)))
    ordered["margin_if_robust"] = ordered["margin"].where(ordered["robust"], 0)
    ordered = ordered.sort_values(["index", "eps", "robust", "margin_if_robust", "order"], kind="stable")
    first = ordered.groupby(["index", "eps"], sort=False).head(1)
    return first[samples.columns].assign(attack=WORST).astype(samples.dtypes).reset_index(drop=True)
