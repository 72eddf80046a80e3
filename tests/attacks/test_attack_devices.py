"""Precision, compilation and batch size: what they may change, and that they give way when they cannot work."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator

import pytest
import torch
from attack_models import labelled, robust, run, small_conv, uniform
from torch import Tensor, nn

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.batching import CPU_BATCH, LARGEST_BATCH
from clipguard.attacks.engine.passes.precision import tf32
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.threat import ThreatModel

EPS = 0.01  # some of the images below survive it


@pytest.fixture
def examples() -> list[Example]:
    return labelled(small_conv(), uniform(12, 3, 16, 16))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What clipguard, and not torch, logged."""
    return [record.message for record in caplog.records if record.name == "clipguard"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("attack", "eps"), [("apgd-ce(iterations=10)", EPS), ("square(queries=30)", 4 * EPS)])
def test_a_compiled_search_finds_the_same(
    attack: str, eps: float, examples: list[Example], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = run(small_conv(), examples, attack, eps, compile=True)
    assert robust(outcomes) == robust(run(small_conv(), examples, attack, eps))
    assert 0 < sum(robust(outcomes)) < len(examples)
    assert not said(caplog)  # it did compile
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.usefixtures("fresh_compiler")
def test_without_a_working_compiler_the_search_goes_on(
    examples: list[Example], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(nn.Module):
        """Its branch depends on the pixels; `fullgraph` does not allow that."""

        def __init__(self) -> None:
            super().__init__()
            self.model = small_conv()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x)
            return logits if x.sum() > -1 else -logits

    compile_strictly = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compile_strictly(model, fullgraph=True, **how))
    with caplog.at_level(logging.WARNING, "clipguard"):
        outcomes = run(Refused().eval(), examples, "pgd-5", EPS, compile=True)
    assert robust(outcomes) == robust(run(Refused().eval(), examples, "pgd-5", EPS))
    (message,) = said(caplog)  # once
    assert "without `compile`" in message


def test_bfloat16_search_is_nearly_as_good_and_never_believed(examples: list[Example]) -> None:
    attack = "apgd-ce(iterations=20)"
    exact, crude = (
        run(small_conv(), examples, attack, EPS, precision=p, keep_images=True) for p in ("float32", "bfloat16")
    )
    assert abs(sum(robust(exact)) - sum(robust(crude))) <= 1
    for outcome in crude:  # the images found are wrong in float32
        at_eps = outcome.eps_outcomes[0]
        if not at_eps.robust:
            assert at_eps.image is not None
            assert small_conv()(at_eps.image[None]).argmax() == at_eps.prediction != outcome.label


def test_an_automatic_batch_size_is_chosen_and_no_image_is_lost(examples: list[Example]) -> None:
    options = EngineOptions(batch_size=None)
    engine = Engine(small_conv(), parse_recipe("pgd-2"), ThreatModel("linf"), [EPS], options)
    assert sorted(o.index for o in engine.run(iter(examples))) == [e.index for e in examples]
    assert engine.evaluator.batch_size == CPU_BATCH
    assert list(Engine(small_conv(), parse_recipe("pgd-2"), ThreatModel("linf"), [EPS], options).run([])) == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_agrees_with_the_cpu(precision: str, compiled: bool, examples: list[Example]) -> None:
    attack = "apgd-ce(iterations=20)"
    there = [Example(e.index, e.image.cuda(), e.label) for e in examples]
    outcomes = run(small_conv().cuda(), there, attack, EPS, precision=precision, compile=compiled)
    here = run(small_conv(), examples, attack, EPS)
    assert abs(sum(robust(outcomes)) - sum(robust(here))) <= 1


@pytest.mark.gpu
def test_cuda_s_batch_fits_the_free_memory() -> None:
    image = uniform(3, 64, 64).cuda()
    options = EngineOptions(batch_size=None)
    engine = Engine(small_conv().cuda(), parse_recipe("pgd-2"), ThreatModel("linf"), [EPS], options)
    assert len(list(engine.run([Example(0, image, 0)]))) == 1
    assert CPU_BATCH < engine.evaluator.batch_size <= LARGEST_BATCH


@pytest.mark.gpu
def test_float32_is_not_tf32_on_cuda() -> None:
    def product() -> Tensor:
        a = uniform(256, 256).cuda()
        return (a @ a).double() - a.double() @ a.double()

    device = torch.device("cuda")
    with tf32(device, False):
        strict = product().abs().max()
    with tf32(device, True):
        loose = product().abs().max()
    assert strict < loose / 10
