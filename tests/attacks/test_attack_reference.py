"""The reference library behind the same interface: the same flags, and what it lacks is added."""

from __future__ import annotations

import sys

import pytest
import torch
from attack_models import Wrapped, labelled, robust, small_conv, uniform
from attack_models import run as run_ours

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.engine.reference import ReferenceEngine
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import NORMS, ThreatModel
from clipguard.core.eps import Norm
from clipguard.core.errors import AttackError

EPS: dict[Norm, float] = {"linf": 4 / 255, "l2": 0.2}


def reference(
    model: torch.nn.Module, attack: str, eps_values: list[float], norm: Norm = "linf", **options: object
) -> ReferenceEngine:
    return ReferenceEngine(model, parse_recipe(attack), ThreatModel(norm), eps_values, EngineOptions(**options))


def run(
    model: torch.nn.Module, examples: list[Example], attack: str, eps: float, norm: Norm = "linf"
) -> list[ImageOutcome]:
    return list(reference(model, attack, [eps], norm).run(examples))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "attack",
    [
        "apgd-ce(iterations=30)",
        "apgd-dlr(iterations=30)",
        "apgd-t(iterations=20,targets=4)",
        "fab-t(iterations=20,targets=4)",
    ],
)
def test_both_engines_give_the_same_flags(attack: str, norm: Norm) -> None:
    model = small_conv()
    examples = labelled(model, uniform(30, 3, 8, 8))
    ours, theirs = run_ours(model, examples, attack, EPS[norm], norm), run(model, examples, attack, EPS[norm], norm)
    assert [o.index for o in theirs] == list(range(30))
    assert 3 <= sum(robust(theirs)) <= 27
    assert sum(a != b for a, b in zip(robust(ours), robust(theirs), strict=True)) <= 1
    for outcome in theirs:
        at_eps = outcome.eps_outcomes[0]
        assert at_eps.robust == (at_eps.prediction == outcome.label)
        assert at_eps.distance <= EPS[norm] + 1e-5
        assert at_eps.broken_by == (None if at_eps.robust else attack.split("(")[0])


@pytest.mark.parametrize("norm", NORMS)
def test_square_is_as_strong_as_theirs(norm: Norm) -> None:
    """The squares differ, so the flags may: no more than a few of them, and the totals are close."""
    model = small_conv()
    examples = labelled(model, uniform(30, 3, 15, 15))
    eps = 1.5 * EPS[norm]
    ours = robust(run_ours(model, examples, "square(queries=300)", eps, norm))
    theirs = robust(run(model, examples, "square(queries=300)", eps, norm))
    assert abs(sum(ours) - sum(theirs)) <= 1
    assert 3 <= sum(theirs) <= 27
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 2


@pytest.mark.parametrize("shape", [(12, 12), (4, 4), (27, 25)])
def test_square_on_shapes_that_the_library_fails_on(shape: tuple[int, int]) -> None:
    model = small_conv()
    with pytest.raises(AttackError, match=r"fails for l2 on images of"):
        run(model, labelled(model, uniform(2, 3, *shape)), "square(queries=5)", 0.01, "l2")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes(classes: int, norm: Norm) -> None:
    model = small_conv(classes)
    examples = labelled(model, uniform(6, 3, 8, 8))
    for attack in (
        "apgd-ce(iterations=8)",
        "apgd-dlr(iterations=8)",
        "apgd-t(iterations=8)",
        "fab-t(iterations=8)",
        "square(queries=20)",
    ):
        outcomes = run(model, examples, attack, 0.15, norm)
        assert all(0 <= o.eps_outcomes[0].prediction < classes for o in outcomes)
    assert not all(robust(run(model, examples, "apgd-t(iterations=8)", 1.0, norm)))


def test_all_eps_the_clean_mistakes_and_the_images() -> None:
    model = small_conv()
    images = uniform(8, 3, 8, 8)
    examples = labelled(model, images)
    examples[3] = Example(3, images[3], (examples[3].label + 1) % 10)
    subject = reference(model, "apgd-ce(iterations=10)", [0.1, 0.0, 1e-5], batch_size=5, keep_images=True)
    outcomes = list(subject.run(examples))
    assert [at_eps.eps for at_eps in outcomes[0].eps_outcomes] == [0.0, 1e-5, 0.1]
    assert robust(outcomes, 0) == robust(outcomes, 1) == [i != 3 for i in range(8)]
    assert sum(robust(outcomes, 2)) < 4
    assert {at_eps.broken_by for at_eps in outcomes[3].eps_outcomes} == {"clean"}
    for outcome, example in zip(outcomes, examples, strict=True):
        assert outcome.clean_margin == outcome.eps_outcomes[0].margin
        x = outcome.eps_outcomes[2].image
        assert int(model(x[None]).argmax()) == outcome.eps_outcomes[2].prediction
        assert outcome.eps_outcomes[2].distance == pytest.approx(
            0 if outcome.eps_outcomes[2].robust else float((x - example.image).abs().max()), abs=1e-6
        )
    assert subject.costs["clean"].forward == 8
    assert subject.costs["apgd-ce"].backward == 2 * 7 * 11  # one more gradient than the default engine takes
    assert subject.costs["verification"].forward == 14


@pytest.mark.parametrize("attack", ["apgd-ce(iterations=5)", "fab-t(iterations=5)", "square(queries=5)"])
def test_nan_is_an_error(attack: str) -> None:
    clean = uniform(4, 3, 8, 8)

    def spoil(logits: torch.Tensor, x: torch.Tensor, _: int) -> torch.Tensor:
        nearest = (x[:, None] - clean).flatten(2).abs().amax(dim=2)
        sick = (nearest.argmin(dim=1) == 1) & (nearest.amin(dim=1) > 0)
        return torch.where(sick[:, None], torch.nan, logits)

    model = Wrapped(small_conv(), spoil).eval()
    with pytest.raises(AttackError, match=rf"under {attack.split('(')[0]} \(image 1\)"):
        run(model, labelled(small_conv(), clean), attack, 0.02)


def test_inputs_are_checked_as_by_the_default_engine() -> None:
    model, x = small_conv(), uniform(1, 3, 8, 8)[0]
    for bad in (Example(0, x * 255, 1), Example(0, x, 10)):
        with pytest.raises(AttackError, match=r"must lie in"):
            run(model, [bad], "apgd-ce", 0.1)
    with pytest.raises(AttackError, match="train mode"):
        run(small_conv().train(), [Example(0, x, 1)], "apgd-ce", 0.1)


@pytest.mark.parametrize(
    ("attack", "quantize", "message"),
    [
        ("pgd-10", False, "has no 'pgd'"),
        ("apgd-ce", True, "8-bit"),
        ("apgd-ce(eot=2)", False, "without eot"),
        ("fab-t(restarts=2)", False, "leave out restarts"),
    ],
)
def test_what_it_cannot_do(attack: str, quantize: bool, message: str) -> None:
    with pytest.raises(AttackError, match=message):
        ReferenceEngine(small_conv(), parse_recipe(attack), ThreatModel("linf", quantize), [0.1], EngineOptions())


def test_it_leaves_the_process_as_it_was() -> None:
    model = small_conv()
    torch.manual_seed(3)
    state, trace = torch.get_rng_state(), sys.gettrace()
    run(model, labelled(model, uniform(3, 3, 8, 8)), "fab-t(iterations=3)", 0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is trace
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
