"""What an attacker of a defended classifier knows, and the ways of attack that follow from it.

Croce et al. 2022 (arXiv:2202.13711): most defences at test time that were said to help do not, once they are attacked
through themselves; and for some, images made on the undefended model are the stronger attack. So all three, always.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import nn

from clipguard.attacks.base import Attack
from clipguard.attacks.methods.apgd import APGD
from clipguard.attacks.methods.pgd import FGSM, PGD
from clipguard.attacks.methods.square import Square
from clipguard.attacks.recipes import Recipe
from clipguard.core.errors import DefenseError
from clipguard.defenses import THREATS, Threat
from clipguard.defenses.attacking.stand_ins import Judge, Relaxed, Search, layers
from clipguard.defenses.base import Backward, Classifier
from clipguard.defenses.classifiers import PassCount, Undefended
from clipguard.defenses.draws import Draws

WORST = "worst case"
BACKWARDS: tuple[Backward, ...] = get_args(Backward)
BLACK_BOX = Square(queries=1000)  # where a recipe has no attack without gradients
CONFIDENT = 0.5  # by how much another class must lead in votes before an attack of a random defence may stop


@dataclass(frozen=True)
class DefendedModel:
    """A classifier with its defences, and what its attackers and its judge may use.

    Attributes:
        model: the undefended one: pixels (B, 3, H, W) in [0,1] -> logits (B, classes), frozen and in eval mode.
        classifier: the same with its defences.
        seed: of the run.
        votes: runs of a random defence that decide, an odd number.
        draws: runs of a random defence that each step of an adaptive attack averages over.
        others: further models, by name, on which images are made that are tried on this one.
    """

    model: nn.Module
    classifier: Classifier
    seed: int
    votes: int = 5
    draws: int = 8
    others: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether any of its defences draws."""
        return any(layer.defense.random for layer in layers(self.classifier))

    @property
    def count(self) -> PassCount:
        """Passes through the undefended model so far."""
        inside = layers(self.classifier)[-1].classifier
        assert isinstance(inside, Undefended)
        return inside.count

    def search(self) -> Search:
        """What an attack searches on that takes the first gradient of the outermost defence."""
        backward = layers(self.classifier)[0].defense.backwards[0]
        return Search(self.classifier, self.model, self.seed, backward, self.draws if self.random else 0)

    def judge(self, stream: Literal["judge", "check"]) -> Judge:
        """Who decides: "judge" at last, "check" while an attack runs, with other draws."""
        return Judge(self.classifier, self.model, Draws(self.seed, stream), self.votes if self.random else 0)


@dataclass(frozen=True)
class Approach:
    """One way of attack, on the images that those before left standing.

    Attributes:
        name: of the way, to stand after the attack's: "" or `(identity)`.
        search: what the attack searches on.
        attack: the algorithm.
        confidence: see `EngineOptions`.
    """

    name: str
    search: nn.Module
    attack: Attack
    confidence: float

    @property
    def full_name(self) -> str:
        """`apgd-ce (identity)`: what breaks images in the results."""
        return f"{self.attack.full_name} ({self.name})"


@dataclass(frozen=True)
class ThreatRecipe(Recipe):
    """The attacks of a recipe as one threat uses them."""

    threat: Threat = "adaptive"

    def approaches(self, defended: DefendedModel) -> Iterator[Approach]:
        """The ways of attack, in order."""
        if self.threat == "transfer":
            yield from _transferred("on the undefended model", defended.model, self.stages, defended)
        elif self.threat == "adaptive":
            yield from _adaptive(self.stages, defended)
        else:
            yield from _black_box(self.stages, defended)


def split_by_threat(recipe: Recipe, threats: Sequence[str]) -> list[Recipe]:
    """A recipe as each of several threats uses it. Raises DefenseError for one that no adaptive attack could use."""
    if not recipe.stages:
        return [recipe]
    if all(attack.black_box for attack in recipe.stages):
        raise DefenseError(
            f"`attacks` {recipe.name} uses no gradients, which adaptive attacks need; name one that does, as apgd-ce."
        )
    if recipe.eot != 1:
        raise DefenseError("`attacks`: eot is for random models; with a `defense` give `draws`.")
    return [ThreatRecipe(threat, recipe.stages, threat=threat) for threat in THREATS if threat in threats]


def _transferred(name: str, model: nn.Module, stages: Sequence[Attack], defended: DefendedModel) -> Iterator[Approach]:
    """The papers' way: images made on another model, by attacks that run to their end."""
    search = Search(Undefended(model, count=defended.count), model, defended.seed)
    yield from (Approach(name, search, attack, math.inf) for attack in stages if not attack.black_box)


def _adaptive(stages: Sequence[Attack], defended: DefendedModel) -> Iterator[Approach]:
    """Every gradient that a defence offers, and its further objectives."""
    inside = layers(defended.classifier)
    offered = {backward for layer in inside for backward in layer.defense.backwards}
    draws = defended.draws if defended.random else 0
    searches: dict[str, Search] = {
        backward: Search(defended.classifier, defended.model, defended.seed, backward, draws)
        for backward in BACKWARDS
        if backward in offered
    }
    if sum(layer.defense.backwards[-1] != "identity" for layer in inside) > 1:
        name = "each its own"
        searches[name] = Search(defended.classifier, defended.model, defended.seed, draws=draws, own=True)
    for layer in inside:
        for relaxation in layer.defense.relaxations():
            relaxed = Relaxed(layer, relaxation)
            name = f"{layer.defense.name}: {relaxation}"
            searches[name] = Search(defended.classifier, defended.model, defended.seed, "identity", draws, relaxed)
    confidence = CONFIDENT if defended.random else 0
    for attack in with_small_steps(stages):
        yield from (Approach(name, search, attack, confidence) for name, search in searches.items())


def with_small_steps(stages: Sequence[Attack]) -> list[Attack]:
    """The attacks that use gradients, and after Auto-PGD PGD of as many steps, if there is none.

    Auto-PGD begins with a step of 2 eps and may stay at the other end of the ball; a defended model's loss need not
    rise all the way there.
    """
    attacks = [attack for attack in stages if not attack.black_box]
    steps = [attack.iterations for attack in attacks if isinstance(attack, APGD)]
    if steps and not any(isinstance(attack, PGD) and not isinstance(attack, FGSM) for attack in attacks):
        attacks.append(PGD(iterations=max(steps)))
    return attacks


def _black_box(stages: Sequence[Attack], defended: DefendedModel) -> Iterator[Approach]:
    """Images of other models, then queries."""
    for name, model in defended.others.items():
        yield from _transferred(f"on {name}", model, stages, defended)
    # One draw a query, as whoever can only ask has it.
    search = Search(defended.classifier, defended.model, defended.seed, draws=1 if defended.random else 0)
    confidence = CONFIDENT if defended.random else 0
    for attack in [attack for attack in stages if attack.black_box] or [BLACK_BOX]:
        yield Approach("queries", search, attack, confidence)
