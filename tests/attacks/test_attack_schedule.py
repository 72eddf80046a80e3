"""Units side by side: whatever order they end in, the outcome is that of one after the other."""

from __future__ import annotations

import pytest
import torch
from attack_models import Precise, SmallConv, engine, facts, hadamard_model, labelled, run, uniform

from clipguard.attacks.engine.options import EPS_MODES, EpsMode
from clipguard.attacks.engine.outcome import EpsOutcome
from clipguard.attacks.engine.schedule import EpsState

SLOW_THEN_QUICK = "pgd-40(step_size=0.05,random_start=false)+fgsm"


def outcome(by: str) -> EpsOutcome:
    return EpsOutcome(0.1, False, 1, by, 0.1, -1.0)


def test_the_first_unit_in_order_that_can_break_an_image_does() -> None:
    eps_state = EpsState([(0, 0), (1, 0), (1, 1), (2, 0)], margin=3.0)
    assert [eps_state.begin() for _ in range(3)] == [0, 1, 2]
    assert eps_state.more
    assert eps_state.verdict is None
    eps_state.succeed(2, outcome("third"))
    assert not eps_state.more  # nothing after it can matter
    assert eps_state.running == {0, 1}
    assert eps_state.verdict is None  # what is before it still can
    eps_state.end(0, 1.0, None)
    eps_state.succeed(1, outcome("second"))
    assert eps_state.verdict is True
    assert eps_state.outcome == outcome("second")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_smallest_margin_is_kept_and_the_first_unit_s_of_equal_ones(order: tuple[int, ...]) -> None:
    eps_state = EpsState([(0, 0), (1, 0), (2, 0)], margin=3.0)
    images = [torch.tensor([float(unit)]) for unit in range(3)]
    for _ in range(3):
        eps_state.begin()
    for unit in order:
        eps_state.end(unit, [2.0, 1.0, 1.0][unit], images[unit])
    assert eps_state.verdict is False
    assert (eps_state.margin, eps_state.image) == (1.0, images[1])


def test_a_clean_margin_that_no_unit_lowers_stays() -> None:
    eps_state = EpsState([(0, 0)], margin=3.0, image=torch.zeros(1))
    eps_state.end(eps_state.begin(), 3.0, torch.ones(1))
    assert eps_state.image == torch.zeros(1)


def test_a_quick_attack_takes_no_credit_from_a_slow_one_before_it() -> None:
    model = hadamard_model(4)
    examples = labelled(model, 0.5 + 0.2 * (uniform(6, 1, 8, 8) - 0.5))
    alone, beside = (run(model, examples, SLOW_THEN_QUICK, 0.05, batch_size=size) for size in (1, 64))
    assert [facts(o.eps_outcomes[0]) for o in alone] == [facts(o.eps_outcomes[0]) for o in beside]
    assert {o.eps_outcomes[0].broken_by for o in beside} == {"pgd-40"}
    # The quick one did run beside it, and was first.
    subject = engine(model, SLOW_THEN_QUICK, 0.05, batch_size=64)
    list(subject.run(examples))
    assert subject.costs["fgsm"].forward == 2 * len(examples)


@pytest.mark.parametrize("mode", EPS_MODES)
def test_room_changes_no_outcome(mode: EpsMode) -> None:
    model = Precise(SmallConv()).eval()
    examples = labelled(model, uniform(9, 3, 8, 8))
    eps_values = [0.001, 0.004, 0.01, 0.1]
    recipe = "apgd-ce(iterations=8)+apgd-t(iterations=6,targets=3)+square(queries=20)"
    found = [run(model, examples, recipe, eps_values, batch_size=size, eps_mode=mode) for size in (1, 5, 200)]
    first, *others = [[[facts(at_eps) for at_eps in o.eps_outcomes] for o in outcomes] for outcomes in found]
    assert 0 < sum(o.eps_outcomes[2].robust for o in found[0]) < len(examples)
    assert others == [first, first]
