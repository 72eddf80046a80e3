"""Attacks on defended classifiers, on cases where it is known which of them must succeed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from defended_models import LinearClip, images
from planted_defenses import Brighter, Mirror, Noise, Nothing
from torch import Tensor

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.recipes import Recipe, parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.errors import DefenseError, NonFiniteError
from clipguard.defenses.attacking.engine import DefendedEngine
from clipguard.defenses.attacking.threats import DefendedModel, split_by_threat
from clipguard.defenses.base import Classifier, Defense, Purifier, View
from clipguard.defenses.classifiers import defend
from clipguard.defenses.registry import parse_defenses

SHAPE = (3, 4, 4)
EPS = 0.05


def examples(means: list[float], labels: list[int]) -> Iterator[Example]:
    for index, (mean, label) in enumerate(zip(means, labels, strict=True)):
        yield Example(index, torch.full(SHAPE, mean), label)


def attack(
    defense: Defense, threat: str, means: list[float], labels: list[int], recipe: str = "apgd-ce", **options: object
) -> list[ImageOutcome]:
    model = Brighter().eval()
    defended = DefendedModel(model, defend(model, [defense]), seed=0)
    (of_threat,) = split_by_threat(parse_recipe(recipe), [threat])
    engine = DefendedEngine(defended, of_threat, ThreatModel(), [EPS], EngineOptions(**options))  # type: ignore[arg-type]
    return list(engine.run(examples(means, labels)))


def robust(outcomes: list[ImageOutcome]) -> list[bool]:
    return [outcome.eps_outcomes[0].robust for outcome in outcomes]


def test_an_adaptive_attack_breaks_what_a_transferred_one_cannot() -> None:
    means, labels = [0.53, 0.47], [0, 1]  # right once they are mirrored, by less than eps
    assert robust(attack(Mirror(), "transfer", means, labels)) == [True, True]
    broken = attack(Mirror(), "adaptive", means, labels)
    assert robust(broken) == [False, False]
    assert {outcome.eps_outcomes[0].broken_by for outcome in broken} == {"apgd-ce (unrolled)"}


def test_queries_alone_break_it_too() -> None:
    assert robust(attack(Mirror(), "black-box", [0.51, 0.49], [0, 1], "apgd-ce+square(queries=300)")) == [False, False]


@pytest.mark.parametrize("threat", ["transfer", "adaptive", "black-box"])
def test_no_attack_reports_a_miracle_on_what_cannot_be_broken(threat: str) -> None:
    recipe = "apgd-ce+square(queries=50)"
    assert robust(attack(Mirror(), threat, [0.57, 0.43], [0, 1], recipe)) == [True, True]


def test_of_no_defence_at_all_every_attack_is_the_plain_one() -> None:
    means = [0.53, 0.47, 0.56, 0.44]
    labels = [1, 0, 1, 0]
    plain = Engine(Brighter().eval(), parse_recipe("apgd-ce"), ThreatModel(), [EPS], EngineOptions())
    wanted = robust(sorted(plain.run(examples(means, labels)), key=lambda outcome: outcome.index))
    assert wanted == [False, False, True, True]
    for threat in ("transfer", "adaptive"):
        assert robust(attack(Nothing(), threat, means, labels)) == wanted


def test_a_random_defence_is_broken_where_the_majority_of_fresh_runs_is_wrong() -> None:
    """Noise of 0.02 on the mean: at 0.53 an image can be moved to 0.48, where six of seven runs are wrong."""
    outcomes = attack(Noise(), "adaptive", [0.53, 0.6], [1, 1])
    assert robust(outcomes) == [False, True]
    assert outcomes[0].eps_outcomes[0].margin < 0
    clean = [outcome.clean_prediction for outcome in outcomes]
    assert clean == [1, 1]


@pytest.mark.parametrize("threat", ["transfer", "adaptive", "black-box"])
def test_noise_alone_breaks_nothing_however_often_it_is_looked_at(threat: str) -> None:
    """Images that the noise turns one time in four, and an eps that moves nothing: as many are right as without."""
    means, recipe = [0.5135 + 1e-4 * k for k in range(12)], "apgd-ce(iterations=5)+square(queries=20)"
    model = Brighter().eval()
    defended = DefendedModel(model, defend(model, [Noise()]), seed=0, votes=1)
    (of_threat,) = split_by_threat(parse_recipe(recipe), [threat])
    engine = DefendedEngine(defended, of_threat, ThreatModel(), [1e-6], EngineOptions())
    outcomes = list(engine.run(examples(means, [1] * len(means))))
    right = [outcome.clean_prediction == 1 for outcome in outcomes]
    assert 0 < sum(right) < len(right)
    assert robust(outcomes) == right


@dataclass(frozen=True)
class Dust(Purifier):
    """Changes the image by next to nothing."""

    name: ClassVar[str] = "dust"
    summary: ClassVar[str] = "planted"
    size: float = 0.0

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return x + self.size


@pytest.mark.parametrize("around", ["", "tte+", "smoothing(samples=3)+"])
def test_inside_a_chain_draws_are_those_of_the_image_that_comes_in(around: str) -> None:
    """So that the last digits of what an outer defence computes, which differ between batches, change no draw."""
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    chains = [[*parse_defenses(f"{around}jpeg")[:-1], Dust(size), Noise(0.3)] for size in (0.0, 1e-6)]
    exact, dusty = (defend(Brighter(), chain).logits(x, View()) for chain in chains)
    torch.testing.assert_close(exact, dusty, rtol=0, atol=1e-2)
    alone = defend(Brighter(), chains[0]).logits(x[1:2], View())
    torch.testing.assert_close(alone[0], exact[1])
    if not around:
        return
    copies = defend(Brighter(), chains[0]).logits(x[:1] * 0 + 0.5, View()) - Brighter()(x[:1] * 0 + 0.5)
    assert copies.abs().max() > 1e-3  # each copy has noise of its own, and so has their mean


def test_a_chain_is_also_tried_with_the_own_gradient_of_each() -> None:
    model = LinearClip(curved=True).eval()
    defended = DefendedModel(model, defend(model, parse_defenses("jpeg+et3")), seed=0)
    (recipe,) = split_by_threat(parse_recipe("pgd-2"), ["adaptive"])
    searches = {approach.name: approach.search for approach in recipe.approaches(defended)}
    assert list(searches) == ["identity", "surrogate", "unrolled", "each its own"]
    gradients = []
    for search in searches.values():
        leaf = images(2).requires_grad_()
        gradients.append(torch.autograd.grad(search(leaf)[:, 0].sum(), leaf)[0])
    assert not any(torch.allclose(gradients[3], other) for other in gradients[:3])


@pytest.mark.parametrize("threat", ["transfer", "adaptive"])
def test_an_image_fares_alike_alone_and_among_others(threat: str) -> None:
    means, labels = [0.53, 0.515, 0.535, 0.545], [1, 1, 1, 1]
    together = attack(Noise(), threat, means, labels)
    for size in (1, 3):
        assert attack(Noise(), threat, means, labels, batch_size=size) == together


def test_what_is_known_is_not_attacked_again() -> None:
    model = Brighter().eval()
    defended = DefendedModel(model, defend(model, [Mirror()]), seed=0)
    (of_threat,) = split_by_threat(parse_recipe("apgd-ce"), ["adaptive"])
    first = DefendedEngine(defended, of_threat, ThreatModel(), [0.02, EPS], EngineOptions())
    engine = DefendedEngine(defended, of_threat, ThreatModel(), [0.02, EPS], EngineOptions())
    (outcome,) = first.run(examples([0.53], [0]))
    known = {one.eps: one for one in outcome.eps_outcomes}
    before = defended.count.backward
    again = list(engine.run([Example(0, torch.full(SHAPE, 0.53), 0, known)]))
    assert again == [outcome]
    assert defended.count.backward == before
    assert [one.robust for one in outcome.eps_outcomes] == [True, False]


def test_passes_of_the_model_itself_are_counted() -> None:
    model = Brighter().eval()
    seen = []
    model.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    defended = DefendedModel(model, defend(model, [Mirror()]), seed=0)
    (of_threat,) = split_by_threat(parse_recipe("apgd-ce"), ["adaptive"])
    engine = DefendedEngine(defended, of_threat, ThreatModel(), [EPS], EngineOptions())
    list(engine.run(examples([0.57, 0.53], [0, 0])))
    assert sum(cost.forward for cost in engine.costs.values()) == sum(seen) == engine.passes
    assert engine.costs["apgd-ce (identity)"].backward > 0


def test_nan_is_an_error() -> None:
    @dataclass(frozen=True)
    class Broken(Noise):
        def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
            return super().purify(classifier, x, view) * (math.nan if float(x.mean()) < 0.52 else 1)

    with pytest.raises(NonFiniteError, match="image 0"):
        attack(Broken(), "adaptive", [0.53], [1])


def test_nan_is_an_error_behind_a_vote_of_copies() -> None:
    class Nowhere(Brighter):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * math.nan

    model = Nowhere().eval()
    defended = DefendedModel(model, defend(model, parse_defenses("smoothing(samples=3)")), seed=0)
    (of_threat,) = split_by_threat(parse_recipe("apgd-ce"), ["adaptive"])
    engine = DefendedEngine(defended, of_threat, ThreatModel(), [EPS], EngineOptions())
    with pytest.raises(NonFiniteError):
        list(engine.run(examples([0.53], [1])))


def test_an_attack_without_gradients_alone_is_refused() -> None:
    with pytest.raises(DefenseError, match="uses no gradients"):
        split_by_threat(parse_recipe("square"), ["adaptive"])
    with pytest.raises(DefenseError, match="draws"):
        split_by_threat(Recipe("mine", parse_recipe("apgd-ce").stages, eot=3), ["adaptive"])


def test_a_defence_that_needs_embeddings_is_refused_before_one_that_gives_none() -> None:
    with pytest.raises(DefenseError, match="ttc needs embeddings, and tte, which comes after it, gives none"):
        defend(LinearClip().eval(), parse_defenses("ttc+tte"))
    defend(LinearClip().eval(), parse_defenses("tte+ttc"))
