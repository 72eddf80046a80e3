"""For each defence a case where images of the undefended model fail and whoever knows the defence must not.

In each, a defence moves what the classifier reads away from the boundary that the undefended model's gradient leads to,
and so close to another one that an attack in the other direction succeeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from dial_models import Dial, Stairs, Worded, at_zero_degrees, brightness, checkers, contrast, grain
from torch import Tensor, nn

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.defenses.attacking.engine import DefendedEngine
from clipguard.defenses.attacking.threats import DefendedModel, split_by_threat, with_small_steps
from clipguard.defenses.base import Classifier, Prompts, View
from clipguard.defenses.classifiers import defend
from clipguard.defenses.registry import BUILT_IN, parse_defenses

HALVES, THIRDS = (0.0, 180.0), (0.0, -120.0, 120.0)
RECIPE = "apgd-ce(iterations=30)"
NAMES = [kind.name for kind in BUILT_IN]
N = 3


def even(value: float, side: int = 8) -> Tensor:
    """(N, 3, side, side) of a value, but for a little noise."""
    return value + 1e-3 * (2 * torch.rand(N, 3, side, side, generator=torch.Generator().manual_seed(0)) - 1)


def rough(size: float) -> Tensor:
    """(N, 3, 8, 8) that go up and down by a size from pixel to pixel."""
    return even(0.5) + size * checkers(8)


def fine_and_coarse(x: Tensor) -> Tensor:
    """Moved by the grain four times as much as by the brightness: it hides that from the sign of a gradient."""
    return 4 * grain(x) + brightness(x)


@dataclass(frozen=True)
class Case:
    """Images of one class that a defended model is right about.

    Attributes:
        defense: with options that make it change much.
        model: the undefended one, which an attack at `eps` breaks.
        x: the images.
        eps: in pixel units.
        label: their class.
        prompts: the text side, for a defence that needs one.
    """

    defense: str
    model: nn.Module
    x: Tensor
    eps: float
    label: int = 0
    prompts: Prompts | None = None

    def attacked(self, threat: str, recipe: str = RECIPE) -> list[ImageOutcome]:
        """The outcomes under one threat, in order."""
        model = self.model.eval()
        classifier = defend(model, parse_defenses(self.defense), self.prompts)
        defended = DefendedModel(model, classifier, seed=0, votes=3, draws=2)
        (of_threat,) = split_by_threat(parse_recipe(recipe), [threat])
        engine = DefendedEngine(defended, of_threat, ThreatModel(), [self.eps], EngineOptions())
        return sorted(engine.run(self.examples()), key=lambda outcome: outcome.index)

    def examples(self) -> list[Example]:
        return [Example(index, image, self.label) for index, image in enumerate(self.x)]


@cache
def cases() -> dict[str, Case]:
    """One a defence, by its name."""
    confident = Dial(brightness, 0.5, 0.12, HALVES)  # the move is so long that it ends a turn further
    found = [
        # Confidence in the wrong class is found on the other side of it; one in the right class just before the wrong.
        Case("anti-adversary(k=1,step_size=0.44)", confident, even(0.505), 0.03),
        # At 0.45 darker is wrong. It is seen as 1/3, with whatever is darker; 2/3 is wrong, and begins at 0.5.
        Case("bit-depth(bits=2)", Dial(brightness, 0.47, 0.14, HALVES), even(0.45), 0.06),
        # 45 degrees lower than it stands, the upper boundary is out of reach, and the lower is not.
        Case(
            "clipure-cos(steps=1,step_size=1)",
            Dial(brightness, 0.5, 1, (35, -35, 105)),
            even(0.5 + 60 / 360),
            20 / 360,
            prompts=at_zero_degrees(),
        ),
        # The low-passed image has no grain: moved toward it, the image has too much of it no more, but soon too little.
        Case(
            "csr(radius=20,threshold=0.99,eps=12.75,steps=1,step_size=12.75)",
            Dial(grain, 0.07, 0.3, THIRDS),
            rough(0.1),
            0.04,
        ),
        # Counterattacks add contrast: too little is made up for, and a little much becomes too much.
        Case(
            "doc(eps=25.5,steps=2,step_size=12.75,threshold=9,copies=1)",
            Dial(contrast, 0.0549, 0.1242, THIRDS),
            rough(0.2),
            0.03,
        ),
        # Energy falls as images get brighter, whatever they show.
        Case("et3(steps=1,step_size=32,eps=50)", Stairs(brightness, 0.48, 0.6), even(0.5), 0.03, label=1),
        # As bit-depth, with the means of blocks.
        Case("jpeg(quality=2)", Dial(brightness, 0.5533, 0.0525, HALVES), even(0.5458, 16), 0.0225),
        # The grey border makes a dark image brighter.
        Case("random-resize", Dial(brightness, 0.3, 0.052, HALVES), even(0.302), 0.015),
        # Views have no grain in common.
        _of_words("r-tpt(views=16,selected=0.2)", Worded(fine_and_coarse, 0.48)),
        # Noise adds contrast.
        Case("smoothing(sigma=0.1,samples=16)", Dial(contrast, 0.0451, 0.0654, THIRDS), rough(0.2), 0.03),
        Case(
            "ttc(eps=25.5,steps=2,step_size=12.75,threshold=9)",
            Dial(contrast, 0.0583, 0.1446, THIRDS),
            rough(0.2),
            0.03,
        ),
        # The mirror image has the opposite grain, and the same brightness.
        Case("tte", Stairs(fine_and_coarse, 0.42), even(0.5), 0.03, label=1),
    ]
    return {parse_defenses(case.defense)[0].name: case for case in found}


def _of_words(defense: str, model: Worded) -> Case:
    return Case(defense, model, even(0.5, 16), 0.03, label=1, prompts=model.prompts)


def robust(outcomes: list[ImageOutcome]) -> list[bool]:
    return [outcome.eps_outcomes[0].robust for outcome in outcomes]


def test_every_defence_has_a_case() -> None:
    assert sorted(cases()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_adaptive_attack_breaks_what_a_transferred_one_cannot(name: str) -> None:
    case = cases()[name]
    plain = Engine(case.model.eval(), parse_recipe(RECIPE), ThreatModel(), [case.eps], EngineOptions())
    undefended = list(plain.run(case.examples()))
    assert [outcome.clean_prediction for outcome in undefended] == [case.label] * N
    assert robust(undefended) == [False] * N
    assert robust(case.attacked("transfer")) == [True] * N
    broken = case.attacked("adaptive")
    assert [outcome.clean_prediction for outcome in broken] == [case.label] * N
    assert robust(broken) == [False] * N


def test_an_adaptive_attack_finds_the_little_that_the_gate_lets_pass() -> None:
    """Grain of 0.02 is wrong and passes; less is right, and more, as transferred images have it, is taken away."""
    defense = "csr(radius=20,threshold=0.9,eps=15.3,steps=3,step_size=7)"
    case = Case(defense, Dial(grain, -0.005, 0.3, (0, 40, 200)), rough(0), 0.05)
    classifier = defend(case.model.eval(), parse_defenses(case.defense))
    grains = [0.01, 0.02, 0.03, 0.04, 0.05]
    x = torch.cat([rough(size)[:1] for size in grains])
    assert case.model(x).argmax(dim=1).tolist() == [0, 1, 1, 1, 1]
    assert classifier.logits(x, View()).argmax(dim=1).tolist() == [0, 1, 0, 0, 0]
    assert robust(case.attacked("transfer")) == [True] * N
    assert robust(case.attacked("adaptive")) == [False] * N


def test_what_apgd_steps_over_is_found_by_smaller_steps_and_by_queries() -> None:
    """Brighter is worse at first, then wrong, and right again at the end: the first step, 2 eps long, leads to the end.
    There the loss is higher than where it came from and slopes outward, so it stays.
    """
    model = Dial(brightness, 0.5, 0.12, HALVES)
    case = Case("et3(steps=1,step_size=42.7,eps=50)", model, even(0.505), 0.03)
    classifier = defend(model.eval(), parse_defenses(case.defense))
    brighter = torch.cat([even(value)[:1] for value in (0.475, 0.505, 0.525, 0.535)])
    assert classifier.logits(brighter, View()).argmax(dim=1).tolist() == [1, 0, 1, 0]
    alone = Engine(_Defended(classifier).eval(), parse_recipe("apgd-ce"), ThreatModel(), [case.eps], EngineOptions())
    assert robust(list(alone.run(case.examples()))) == [True] * N
    found = case.attacked("adaptive", "apgd-ce")
    assert robust(found) == [False] * N
    assert {outcome.eps_outcomes[0].broken_by for outcome in found} <= {"pgd-100 (identity)", "pgd-100 (unrolled)"}
    assert robust(case.attacked("black-box", "apgd-ce+square(queries=300)")) == [False] * N


class _Defended(nn.Module):
    """A defended classifier as a plain module, whose gradient is that of its own steps."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.logits(x, View(backward="unrolled"))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("apgd-ce(iterations=30)+apgd-dlr(iterations=40)+square", ["apgd-ce", "apgd-dlr", "pgd-40"]),
        ("apgd-ce+pgd-7", ["apgd-ce", "pgd-7"]),
        ("apgd-ce+fgsm", ["apgd-ce", "fgsm", "pgd-100"]),
        ("pgd-7", ["pgd-7"]),
        ("fab-t", ["fab-t"]),
    ],
)
def test_small_steps_follow_auto_pgd(recipe: str, expected: list[str]) -> None:
    assert [attack.full_name for attack in with_small_steps(parse_recipe(recipe).stages)] == expected


def wide(case: Case) -> Case:
    """The defence of a case around a model that reads 0.5, and is right from 0.2 to 0.8.

    No defence here moves the reading by more than 0.17, and eps is 0.03; of smoothing's noise 0.007 is a standard
    deviation, and clipure-cos turns the hand by 45 degrees of 90.
    """
    if isinstance(case.model, Worded):
        return _of_words(case.defense, Worded(brightness, 0.2))
    return Case(case.defense, Dial(brightness, 0.5, 1.2, HALVES), even(0.5), 0.03, prompts=case.prompts)


@pytest.mark.parametrize("threat", ["transfer", "adaptive", "black-box"])
@pytest.mark.parametrize("name", NAMES)
def test_no_attack_reports_a_miracle_on_what_cannot_be_broken(name: str, threat: str) -> None:
    outcomes = wide(cases()[name]).attacked(threat, f"{RECIPE}+pgd-10+square(queries=20)")
    assert robust(outcomes) == [True] * N
    assert all(0 < outcome.eps_outcomes[0].margin < math.inf for outcome in outcomes)
