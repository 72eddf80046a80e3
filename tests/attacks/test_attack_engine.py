"""The engine: outcomes belong to the image alone, breaks count at larger eps, and only what is verified counts."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from attack_models import (
    Precise,
    SmallConv,
    Wrapped,
    engine,
    facts,
    hadamard_model,
    labelled,
    robust,
    run,
    small_conv,
    uniform,
)
from torch import Tensor, nn

from clipguard.attacks.engine.options import EPS_MODES, EpsMode
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.engine.schedule import schedule
from clipguard.attacks.threat import NORMS, ThreatModel
from clipguard.core.eps import Norm

# Every attack, short, at eps that break some of the images and leave others.
SHORT = {
    "fgsm": "fgsm",
    "pgd": "pgd-5(restarts=2)",
    "cw": "cw-5",
    "apgd-ce": "apgd-ce(iterations=9,restarts=2)",
    "apgd-dlr": "apgd-dlr(iterations=12)",
    "apgd-t": "apgd-t(iterations=6,targets=3)",
    "fab-t": "fab-t(iterations=5,targets=2,restarts=2)",
    "square": "square(queries=30)",
}
EPS_VALUES: dict[Norm, list[float]] = {"linf": [1 / 255, 3 / 255, 6 / 255], "l2": [0.05, 0.15, 0.3]}


def precise(classes: int = 10) -> nn.Module:
    return Precise(SmallConv(classes)).eval()


def compare(first: list[ImageOutcome], second: list[ImageOutcome]) -> None:
    """The same in every respect, but for the last bits of distances and margins."""
    assert [o.index for o in first] == [o.index for o in second]
    for a, b in zip(first, second, strict=True):
        assert [facts(at_eps) for at_eps in a.eps_outcomes] == [facts(at_eps) for at_eps in b.eps_outcomes], a.index
        for one, other in zip(a.eps_outcomes, b.eps_outcomes, strict=True):
            assert one.distance == pytest.approx(other.distance, rel=1e-4, abs=1e-6)
            assert one.margin == pytest.approx(other.margin, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", list(SHORT.values()), ids=list(SHORT))
def test_an_outcome_does_not_depend_on_the_batch(attack: str, norm: Norm) -> None:
    model, eps_values = precise(), EPS_VALUES[norm]
    examples = labelled(model, uniform(10, 3, 8, 8))
    crowd = run(model, examples, attack, eps_values, norm, batch_size=64)
    flags = {flag for i in range(3) for flag in robust(crowd, i)}
    assert flags == {True, False}
    compare(run(model, examples, attack, eps_values, norm, batch_size=5), crowd)
    shuffled = random.Random(0).sample(examples, len(examples))
    compare(run(model, shuffled, attack, eps_values, norm, batch_size=7), crowd)
    shards = [run(model, examples[i::2], attack, eps_values, norm, batch_size=4) for i in range(2)]
    compare(sorted([*shards[0], *shards[1]], key=lambda o: o.index), crowd)
    compare(run(model, examples[3:4], attack, eps_values, norm, batch_size=1), crowd[3:4])


def test_suites_mix_attacks_in_one_pass_without_mixing_results() -> None:
    model = precise()
    examples = labelled(model, uniform(6, 3, 8, 8, seed=2))
    compare(
        run(model, examples, "short-suite", EPS_VALUES["linf"], batch_size=1),
        run(model, examples, "short-suite", EPS_VALUES["linf"], batch_size=6),
    )


def test_the_trajectory_of_an_image_is_the_same_alone_and_in_a_crowd() -> None:
    """Every point that the model is asked about, for the image with index 2."""

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.seen = precise(), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen += [row.detach().clone() for row in x]
            return self.model(x)

    model = Recording().eval()
    # Images of disjoint ranges, so that a point tells which image it comes from.
    images = torch.stack([0.25 * i + 0.05 + 0.15 * uniform(3, 8, 8, seed=i) for i in range(4)])
    examples = labelled(model, images)
    for attack in ("apgd-t(iterations=15,targets=2)", "fab-t(iterations=10,targets=2)", "square(queries=30)"):
        paths = []
        for crowd in (examples, examples[2:3]):
            model.seen.clear()
            run(model, crowd, attack, 0.01)
            paths.append([x for x in model.seen if 0.5 < x.mean() < 0.75])
        assert len(paths[0]) == len(paths[1]) > 15
        for x, alone in zip(*paths, strict=True):
            assert torch.allclose(x, alone, atol=1e-6)


def test_seeds_and_indices_matter() -> None:
    model = small_conv()
    examples = labelled(model, uniform(4, 3, 8, 8))
    base = run(model, examples, "pgd-1", 0.02)
    other_seed = run(model, examples, "pgd-1", 0.02, seed=1)
    moved = run(model, [Example(e.index + 100, e.image, e.label) for e in examples], "pgd-1", 0.02)
    for changed in (other_seed, moved):
        assert all(a.eps_outcomes[0].margin != b.eps_outcomes[0].margin for a, b in zip(base, changed, strict=True))
    assert base == run(model, examples, "pgd-1", 0.02)


# Eps ------------------------------------------------------------------------------------------------------------


def visits(mode: EpsMode, broken_at: list[bool], broken_when_confirming: list[bool]) -> list[tuple[int, bool]]:
    """What `schedule` asks for if the image breaks at these eps."""
    plan, asked = schedule(mode, len(broken_at)), []
    try:
        eps_index, full = next(plan)
        while True:
            asked.append((eps_index, full))
            eps_index, full = plan.send((broken_at if full else broken_when_confirming)[eps_index])
    except StopIteration:
        return asked


def test_schedules() -> None:
    never, late = [False] * 3, [False, True, True]
    assert visits("ascending", late, late) == [(0, True), (1, True)]
    assert visits("ascending", never, never) == [(0, True), (1, True), (2, True)]
    assert visits("independent", late, late) == [(0, True), (1, True), (2, True)]
    assert visits("nested", late, late) == [(2, True), (1, True), (0, True)]
    assert visits("nested", never, never) == [(2, True), (1, False), (0, False)]
    assert visits("nested", [False, False, True], [True, False, False]) == [(2, True), (1, True), (0, False)]
    assert all(visits(mode, [], []) == [] for mode in EPS_MODES)


@pytest.mark.parametrize("norm", NORMS)
def test_modes_agree_on_what_they_must(norm: Norm) -> None:
    model = precise()
    examples = labelled(model, uniform(16, 3, 8, 8))
    ascending, independent, nested = (
        run(model, examples, "apgd-ce(iterations=15)", EPS_VALUES[norm], norm, eps_mode=mode) for mode in EPS_MODES
    )
    for a, b in zip(ascending, independent, strict=True):
        first = next((i for i, at_eps in enumerate(a.eps_outcomes) if not at_eps.robust), 2)
        # Up to the first break both did the same; larger eps can only inherit it.
        assert [facts(at_eps) for at_eps in a.eps_outcomes[: first + 1]] == [
            facts(at_eps) for at_eps in b.eps_outcomes[: first + 1]
        ]
        assert [at_eps.robust for at_eps in a.eps_outcomes] == [at_eps.robust for at_eps in b.eps_outcomes]
    for outcome in [*ascending, *independent, *nested]:
        flags = [at_eps.robust for at_eps in outcome.eps_outcomes]
        assert flags == sorted(flags, reverse=True)  # never robust again at a larger eps
        assert [at_eps.eps for at_eps in outcome.eps_outcomes] == EPS_VALUES[norm]
    assert robust(nested, 2) == robust(independent, 2)
    fewer = engine(model, "apgd-ce(iterations=15)", EPS_VALUES[norm], norm, batch_size=1)  # no room to work ahead
    more = engine(model, "apgd-ce(iterations=15)", EPS_VALUES[norm], norm, batch_size=1, eps_mode="independent")
    list(fewer.run(examples)), list(more.run(examples))
    assert fewer.costs["apgd-ce"].forward < more.costs["apgd-ce"].forward


def test_what_a_nested_run_has_to_confirm_is_confirmed_side_by_side() -> None:
    """A survivor of the largest eps faces all smaller ones at once, so that passes of few images are not empty."""
    model = Wrapped(precise(), lambda logits, _x, _calls: logits).eval()
    examples = labelled(model.model, uniform(3, 3, 8, 8))
    eps = [0, 1e-6, 2e-6, 3e-6, 4e-6]
    calls, outcomes = [], []
    for batch_size in (1, 64):
        model.calls = 0
        outcomes.append(run(model, examples, "pgd-9", eps, eps_mode="nested", batch_size=batch_size))
        calls.append(model.calls)
    compare(*outcomes)
    assert calls == [3 + 3 * (10 + 3 * 21), 1 + 10 + 21]


def test_a_break_found_while_confirming_counts_for_larger_eps_too() -> None:
    """FGSM overshoots at the large eps of a model that is wrong only in a shell around the clean image."""

    def shell(logits: Tensor, x: Tensor, _: int) -> Tensor:
        far = (x - 0.5).flatten(1).abs().amax(dim=1)
        broken = (far > 0.02) & (far < 0.06)
        flat = x.flatten(1).sum(dim=1, keepdim=True)
        right = torch.cat([1 + 0 * flat, 0.01 * flat - 0.01 * flat.detach()], dim=1)
        return torch.where(broken[:, None], right.flip(1), right) + 0 * logits.sum()

    model = Wrapped(hadamard_model(2), shell).eval()
    example = Example(0, torch.full((1, 8, 8), 0.5), 0)
    (outcome,) = run(model, [example], "fgsm", [0.05, 0.2], eps_mode="nested")
    assert [at_eps.broken_by for at_eps in outcome.eps_outcomes] == ["apgd-ce", "apgd-ce"]
    assert outcome.eps_outcomes[1].distance <= 0.05 + 1e-6
    (outcome,) = run(model, [example], "fgsm", [0.05, 0.2], eps_mode="independent")
    assert [at_eps.broken_by for at_eps in outcome.eps_outcomes] == ["fgsm", "fgsm"]


@pytest.mark.parametrize("mode", EPS_MODES)
def test_eps_zero_is_the_clean_image(mode: EpsMode) -> None:
    model = small_conv()
    images = uniform(6, 3, 8, 8)
    examples = labelled(model, images)
    examples[1] = Example(1, images[1], (examples[1].label + 1) % 10)
    alone = engine(model, "autoattack", 0.0, eps_mode=mode)
    outcomes = sorted(alone.run(examples), key=lambda o: o.index)
    assert robust(outcomes) == [True, False, True, True, True, True]
    assert outcomes[1].eps_outcomes[0].broken_by == "clean"
    assert all(o.eps_outcomes[0].distance == 0 and o.eps_outcomes[0].margin == o.clean_margin for o in outcomes)
    assert {name: cost.forward for name, cost in alone.costs.items()} == {"clean": 6}
    several = run(model, examples, "pgd-3", [0.0, 0.2], eps_mode=mode, batch_size=2)
    assert robust(several, 0) == robust(outcomes)
    assert robust(several, 1) == [False] * 6


def test_clean_mistakes_are_not_attacked() -> None:
    model = small_conv()
    examples = [Example(e.index, e.image, (e.label + 1) % 10) for e in labelled(model, uniform(5, 3, 8, 8))]
    subject = engine(model, "autoattack", [0.01, 0.1])
    for outcome in subject.run(examples):
        assert [at_eps.broken_by for at_eps in outcome.eps_outcomes] == ["clean", "clean"]
        assert all(at_eps.prediction == outcome.clean_prediction != outcome.label for at_eps in outcome.eps_outcomes)
        assert outcome.eps_outcomes[0].margin == outcome.clean_margin < 0
    assert set(subject.costs) == {"clean"}


def test_the_recipe_none_is_clean_accuracy() -> None:
    model = small_conv()
    assert robust(run(model, labelled(model, uniform(5, 3, 8, 8)), "none", 0.5)) == [True] * 5


# Shapes and classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4, 9])
@pytest.mark.parametrize("norm", NORMS)
def test_few_classes(classes: int, norm: Norm) -> None:
    model = small_conv(classes)
    examples = labelled(model, uniform(4, 3, 8, 8))
    for attack in SHORT.values():
        outcomes = run(model, examples, attack, [1e-6, 8.0 if norm == "l2" else 0.5], norm)
        assert robust(outcomes, 0) == [True] * 4
        assert not all(robust(outcomes, 1)), attack
        for outcome in outcomes:
            assert outcome.eps_outcomes[1].robust == (outcome.eps_outcomes[1].prediction == outcome.label)
            assert outcome.eps_outcomes[1].prediction < classes
    subject = engine(model, "apgd-t(iterations=3)", 1e-6, norm)
    list(subject.run(examples[:1]))
    assert subject.costs["apgd-t"].backward == 3 * (classes - 1)  # a run for every other class


@pytest.mark.parametrize("norm", NORMS)
def test_images_of_several_shapes_in_one_stream(norm: Norm) -> None:
    model = precise()
    shapes = [(3, 8, 8), (3, 9, 17), (3, 20, 6)]
    examples = [
        Example(i, image, labelled(model, image[None])[0].label)
        for i, image in enumerate(uniform(*shapes[i % 3], seed=i) for i in range(6))
    ]
    for attack in ("short-suite", "square(queries=10)"):
        mixed = run(model, examples, attack, EPS_VALUES[norm], norm, batch_size=4, keep_images=True)
        alone = [run(model, [e], attack, EPS_VALUES[norm], norm)[0] for e in examples]
        compare(mixed, alone)
        assert all(o.eps_outcomes[2].image.shape == e.image.shape for o, e in zip(mixed, examples, strict=True))


def test_the_stream_is_read_as_it_is_needed_and_outcomes_come_early() -> None:
    model, read = small_conv(), []

    def stream() -> Iterator[Example]:
        for example in labelled(model, uniform(40, 3, 8, 8)):
            read.append(example.index)
            yield example

    outcomes = engine(model, "pgd-2", 0.3, batch_size=4).run(stream())
    next(outcomes)
    assert len(read) < 20
    assert len(list(outcomes)) == 39


def test_tied_classes() -> None:
    """Two classes of one name have the same logit everywhere: the first wins on clean images, and attacks go on."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = precise(5)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.model(x)
            return torch.cat([logits, logits], dim=1)

    model = Twins().eval()
    examples = labelled(model, uniform(6, 3, 8, 8))
    assert all(e.label < 5 for e in examples)
    for attack in [*SHORT.values(), "short-suite"]:
        small, large = run(model, examples, attack, 1e-4), run(model, examples, attack, 0.5)
        assert robust(small) == [True] * 6
        assert sum(robust(large)) < 6 or attack.startswith("square")
        assert all(o.eps_outcomes[0].margin == 0 for o in small)  # the twin is always as near
        assert all(o.eps_outcomes[0].prediction < 5 for o in [*small, *large])  # and never wins
        assert all(o.eps_outcomes[0].prediction != o.label for o in large if not o.eps_outcomes[0].robust)


# What counts as broken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("quantize", [False, True])
def test_every_adversarial_image_is_wrong_and_admissible(norm: Norm, quantize: bool) -> None:
    model = small_conv()
    images = torch.randint(0, 256, (10, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    examples, eps_values, threat = labelled(model, images), EPS_VALUES[norm], ThreatModel(norm)
    for attack in SHORT.values():
        for outcome in engine(model, attack, eps_values, norm, quantize, keep_images=True).run(examples):
            for at_eps, eps in zip(outcome.eps_outcomes, eps_values, strict=True):
                x, x0 = at_eps.image[None], images[outcome.index][None]
                assert threat.contains(x, x0, torch.tensor([eps])).all()
                assert (int(model(x).argmax()) == outcome.label) == at_eps.robust
                assert int(model(x).argmax()) == at_eps.prediction
                assert at_eps.distance == pytest.approx(0 if at_eps.robust else float(threat.distance(x, x0)), abs=1e-6)
                if quantize:
                    assert torch.equal(x, (x * 255).round() / 255)


def test_8_bit_images_are_harder_to_break_but_not_unbreakable() -> None:
    model = hadamard_model(4)
    x = torch.randint(118, 138, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    examples = labelled(model, x)
    for norm, eps_values in (("linf", [1 / 255, 2 / 255]), ("l2", [0.01, 0.04])):
        for attack in ("pgd-20", "apgd-ce(iterations=30)", "square(queries=200)"):
            free, rounded = (
                list(engine(model, attack, eps_values, norm, quantize).run(examples)) for quantize in (False, True)
            )
            for i in range(2):
                assert sum(robust(rounded, i)) >= sum(robust(free, i))
            assert not all(robust(rounded, 1)), (norm, attack)


def test_small_steps_are_not_rounded_away() -> None:
    """At eps 1/255 ten steps of a quarter grey level each must still reach the 8-bit images one level away."""
    model = hadamard_model(2)
    x = torch.full((1, 1, 8, 8), 128 / 255)
    direction = (model.weight[0] - model.weight[1]).detach().sign().view(1, 1, 8, 8)
    x = x + direction / 255 * (uniform(1, 1, 8, 8) < 0.5)
    examples = labelled(model, x)
    for attack in ("pgd-10", "cw-10", "apgd-ce", "apgd-t", "fab-t"):
        (outcome,) = engine(model, attack, 2 / 255, quantize=True).run(examples)
        assert not outcome.eps_outcomes[0].robust, attack


def test_success_that_cannot_be_repeated_does_not_count() -> None:
    """A model that flips its answer on every second pass with gradients, never on a second look."""

    def flip(logits: Tensor, x: Tensor, calls: int) -> Tensor:
        del calls
        return logits.flip(1) if x.requires_grad else logits

    model = Wrapped(hadamard_model(4), flip).eval()
    examples = labelled(model, 0.5 + 0.2 * (uniform(4, 1, 8, 8) - 0.5))
    for attack in ("pgd-5", "apgd-t(iterations=5)", "fab-t(iterations=5)"):
        subject = engine(model, attack, 1e-5)
        outcomes = list(subject.run(examples))
        assert robust(outcomes) == [True] * 4
        assert all(o.eps_outcomes[0].margin > 0 for o in outcomes)  # nor does it make the margin look small
        assert subject.costs["verification"].forward > 0


def test_an_attack_goes_on_after_a_success_that_could_not_be_repeated() -> None:
    def first_look_only(logits: Tensor, x: Tensor, _: int) -> Tensor:
        return logits.flip(1) if x.requires_grad and (x - clean).abs().max() < 0.0011 else logits

    clean = 0.5 + 0.2 * (uniform(1, 1, 8, 8) - 0.5)
    model = Wrapped(hadamard_model(4), first_look_only).eval()
    (outcome,) = run(model, labelled(model, clean), "pgd-10(random_start=false)", 0.01)
    assert not outcome.eps_outcomes[0].robust
    assert outcome.eps_outcomes[0].distance > 0.0011


def test_success_at_lower_precision_alone_does_not_count() -> None:
    class Crude(nn.Module):
        """Wrong whenever autocast is on."""

        def forward(self, x: Tensor) -> Tensor:
            score = x.flatten(1).sum(dim=1, keepdim=True)
            logits = torch.cat([1 + 0.001 * score, 0 * score], dim=1)
            return logits.flip(1) if torch.is_autocast_enabled("cpu") else logits

    examples = [Example(0, torch.full((1, 4, 4), 0.5), 0)]
    for precision in ("float32", "bfloat16"):
        assert robust(run(Crude().eval(), examples, "apgd-ce(iterations=5)", 0.1, precision=precision)) == [True]


def test_success_outside_the_ball_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if an attack were to leave it."""
    model = hadamard_model(3)
    examples = labelled(model, 0.5 + 0.2 * (uniform(3, 1, 8, 8) - 0.5))
    assert robust(run(model, examples, "pgd-5", 0.02)) == [False] * 3
    monkeypatch.setattr(ThreatModel, "projection", lambda _self, x0, _eps: lambda x: (x0 + 1000 * (x - x0)).clamp(0, 1))
    subject = engine(model, "pgd-5", 1e-4)
    assert robust(list(subject.run(examples))) == [True] * 3
    assert "verification" not in subject.costs


def test_larger_eps_and_more_attacks_never_leave_more_standing() -> None:
    model = small_conv()
    examples = labelled(model, uniform(16, 3, 8, 8))
    for norm in NORMS:
        alone = [run(model, examples, "apgd-ce(iterations=6)", eps, norm) for eps in [*EPS_VALUES[norm], 1.0]]
        counts = [sum(robust(outcomes)) for outcomes in alone]
        assert counts == sorted(counts, reverse=True)
        suite = run(model, examples, "short-suite", EPS_VALUES[norm][1], norm)
        assert sum(robust(suite)) <= counts[1] < len(examples)
        # The suite's first attack is the one above: it gets the credit for what it breaks, and for nothing else.
        by_first = [o.eps_outcomes[0].broken_by == "apgd-ce" for o in suite]
        assert by_first == [not held for held in robust(alone[1])]
