"""Runs that come back to a point end there: the same outcome for every image, with fewer passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attack_models import Precise, SmallConv, engine, labelled, uniform
from torch import Tensor, nn

import clipguard
from clipguard.attacks import losses
from clipguard.attacks.engine.cycles import SHORTEST, repeated, watch
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.methods.apgd import APGD
from clipguard.attacks.methods.pgd import PGD
from clipguard.attacks.state import AttackState
from clipguard.core.eps import Norm
from clipguard.models.classifier import ZeroShotClassifier


@pytest.fixture(scope="module")
def food() -> tuple[ZeroShotClassifier, list[Example]]:
    """The embedded model, and images of which some survive 1/255."""
    model, data = clipguard.load_model("tiny"), clipguard.load_dataset("emoji-food")
    preprocess = model.preprocess()
    chosen = range(0, len(data), len(data) // 12)
    examples = [Example(i, preprocess(data.image(i)), int(data.labels[i])) for i in chosen]
    return model.classifier(data.class_names, data.templates), examples


def full_and_cut(
    model: nn.Module, examples: list[Example], attack: str, eps: list[float], norm: Norm = "linf", **given: Any
) -> tuple[int, int]:
    """Forward passes of the attack with the whole budget, and where runs that repeat themselves end.

    Asserts that every image has the same outcome, image and all, and that the passes not made are counted.
    """
    outcomes: list[list[tuple[Any, ...]]] = []
    passes = []
    for stop in (False, True):
        e = engine(model, attack, eps, norm, stop_cycles=stop, keep_images=True, **given)
        outcomes.append([exactly(outcome) for outcome in sorted(e.run(examples), key=lambda o: o.index)])
        cost = e.costs[e._cases.recipe.stages[0].full_name]
        passes.append(cost.forward)
        assert cost.skipped == passes[0] - passes[-1]
    assert outcomes[0] == outcomes[1]
    return passes[0], passes[1]


def exactly(outcome: ImageOutcome) -> tuple[Any, ...]:
    return outcome.index, *(
        (o.eps, o.robust, o.prediction, o.broken_by, o.distance, o.margin, bits(o.image)) for o in outcome.eps_outcomes
    )


def bits(image: Tensor | None) -> bytes:
    assert image is not None
    return image.contiguous().numpy().tobytes()


@pytest.mark.parametrize(("attack", "times"), [("pgd-100(step_size=1)", 6), ("pgd-100(step_size=0.25)", 2)])
def test_long_runs_of_clip_take_a_fraction_of_their_passes(
    food: tuple[ZeroShotClassifier, list[Example]], attack: str, times: float
) -> None:
    full, cut = full_and_cut(*food, attack, [1 / 255])
    assert full >= times * cut


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("attack", ["pgd-60(step_size=1,restarts=2)", "pgd-40", "cw-40(step_size=0.3)"])
def test_outcomes_are_those_of_the_whole_budget(norm: Norm, quantize: bool, attack: str) -> None:
    model = Precise(SmallConv()).eval()
    examples = labelled(model, (uniform(10, 3, 12, 12, seed=3) * 255).round() / 255)
    eps = [1 / 255, 4 / 255] if norm == "linf" else [0.05, 0.2]
    full_and_cut(model, examples, attack, eps, norm, quantize=quantize, batch_size=7)


def test_a_model_without_gradient_is_left_at_once() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0).sum(dim=(1, 2, 3))[:, None] + torch.tensor([1.0, 0.0])

    examples = [Example(i, image, 0) for i, image in enumerate(uniform(3, 3, 4, 4))]
    full, cut = full_and_cut(Flat().eval(), examples, "pgd-50", [8 / 255])
    assert (full, cut) == (3 * 51, 3)


def test_means_over_passes_and_other_attacks_are_not_cut(food: tuple[ZeroShotClassifier, list[Example]]) -> None:
    model, examples = food
    averaged = engine(model, "pgd-30(step_size=1)", 1 / 255, stop_cycles=True)
    eot = type(averaged)(
        model,
        type(averaged._cases.recipe)("eot", averaged._cases.recipe.stages, eot=2),
        averaged.threat,
        [1 / 255],
        averaged.options,
    )
    list(eot.run(examples[:6]))
    assert eot.costs["pgd-30"].skipped == 0
    other = engine(model, "apgd-ce(iterations=30)", 1 / 255, stop_cycles=True)
    list(other.run(examples[:6]))
    assert other.costs["apgd-ce"].skipped == 0


def test_a_subclass_with_steps_of_its_own_is_not_taken_to_be_memoryless() -> None:
    class Momentum(PGD):
        def update(self, *args: Any) -> None:
            super().update(*args)

    class OtherLoss(PGD):
        loss = losses.negative_margin

    assert (PGD.memoryless, OtherLoss.memoryless, Momentum.memoryless, APGD.memoryless) == (True, True, False, False)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(("start", "period"), [(0, 1), (3, 2), (9, 4), (20, 7), (30, 11)])
def test_cycles_of_any_period_are_found_and_nothing_else_is(
    start: int, period: int, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows at different steps; the second never repeats itself, and differs from its anchor in one value's last bit."""
    monkeypatch.setattr("clipguard.attacks.engine.cycles.asking_is_free", lambda _x: free)
    points = uniform(start + period, 3, 2, 2)
    at = [t if t < start else start + (t - start) % period for t in range(200)]
    never = [points[0].clone() for _ in range(200)]
    for t, point in enumerate(never):
        point[0, 0, 0] = torch.tensor(0.5).view(torch.int32).add(t).view(torch.float32)
    state = AttackState(step=torch.zeros(2, dtype=torch.int64))
    watch(state, torch.stack([points[at[0]], never[0]]))
    found = None
    for t in range(1, 200):
        state["step"] = state["step"] + 1
        same = repeated(state, torch.stack([points[at[t]], never[t]]))
        assert not same[1]
        if same[0]:
            found = t
            break
    assert found is not None
    assert at[found] in at[:found]
    assert found <= 5 / 4 * max(start, SHORTEST * period) + period + SHORTEST


def test_bench_counts_what_was_not_needed_and_the_store_remembers_it(tmp_path: Path) -> None:
    args: dict[str, Any] = {"attacks": "pgd-40(step_size=1)", "eps": "1", "n_samples": 16, "store": tmp_path / "store"}
    first, second = (clipguard.bench("tiny", "emoji-food", **args).run["costs"] for _ in range(2))
    cost = next(c for c in first if c["attack"].startswith("pgd"))["stages"]["pgd-40"]
    assert cost["skipped"] > cost["forward"]
    again = next(c for c in second if c["attack"].startswith("pgd"))
    assert again["stages"] == {}
    assert again["stored"]["pgd-40"]["skipped"] == cost["skipped"]


def test_a_random_model_is_never_cut() -> None:
    """Nor one that was none in an earlier run: what makes it random is neither in its class nor in its weights."""

    class Noisy(nn.Module):
        amount = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return Precise(SmallConv(2)).eval()(x) + self.amount * torch.randn(len(x), 2)

    images = (uniform(12, 3, 8, 8) * 255).round() / 255
    data = (images, torch.zeros(12, dtype=torch.int64), ["a", "b"])
    for amount, is_cut in ((0.0, True), (1e-3, False)):
        module = Noisy().eval()
        module.amount = amount
        result = clipguard.bench(module, data, attacks="pgd-30(step_size=1)", eps="1")
        assert result.run["batch_invariant"]["Noisy"]["holds"] == is_cut
        assert any("skipped" in stage for cost in result.run["costs"] for stage in cost["stages"].values()) == is_cut
