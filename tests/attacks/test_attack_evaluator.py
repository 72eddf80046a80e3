"""Passes: counted to the image, averaged for randomised models, split when memory runs out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from attack_models import Wrapped, engine, hadamard_model, labelled, robust, run, small_conv, uniform
from torch import Tensor, nn

from clipguard.attacks.engine.passes.batching import is_out_of_memory
from clipguard.attacks.engine.passes.evaluator import Evaluator, require_finite
from clipguard.attacks.engine.passes.joint_pass import Query, evaluate
from clipguard.attacks.engine.rows import Rows
from clipguard.attacks.methods.pgd import CW, PGD
from clipguard.attacks.methods.square import Square
from clipguard.attacks.recipes import Recipe, parse_recipe
from clipguard.attacks.state import AttackState
from clipguard.core.errors import AttackError

TINY = 1e-6  # an eps at which nothing breaks


class Counting(nn.Module):
    """Counts what really passes through, in images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards, self.largest = model, 0, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.largest = max(self.largest, len(x))
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad: Tensor) -> Tensor:
        self.backwards += len(grad)
        return grad


@pytest.mark.parametrize(
    ("attack", "forward", "backward"),
    [
        ("fgsm", 2, 1),
        ("pgd-7", 8, 7),
        ("cw-7(restarts=3)", 24, 21),
        ("apgd-ce(iterations=9)", 10, 9),
        ("apgd-t(iterations=9,targets=4)", 40, 36),
        ("apgd-t(iterations=2)", 27, 18),
        ("square(queries=13)", 14, 0),
    ],
)
def test_an_unbroken_image_costs_what_its_iterations_say(attack: str, forward: int, backward: int) -> None:
    subject = engine(Counting(small_conv()).eval(), attack, TINY, batch_size=4)
    assert robust(list(subject.run(labelled(small_conv(), uniform(7, 3, 8, 8))))) == [True] * 7
    name = attack.partition("(")[0]
    assert set(subject.costs) == {"clean", name}
    assert (subject.costs["clean"].forward, subject.costs["clean"].backward) == (7, 0)
    assert (subject.costs[name].forward, subject.costs[name].backward) == (7 * forward, 7 * backward)
    assert subject.costs[name].seconds > 0


def test_fab_costs_at_most_two_forward_passes_an_iteration() -> None:
    for eps in (TINY, 0.02):
        subject = engine(small_conv(), "fab-t(iterations=20,targets=3)", eps)
        outcomes = list(subject.run(labelled(small_conv(), uniform(6, 3, 8, 8))))
        unbroken = sum(robust(outcomes))
        cost = subject.costs["fab-t"]
        assert cost.forward <= 6 * 3 * 41
        assert 20 * 3 * unbroken <= cost.backward <= 20 * 3 * 6 + 6 * 3


@pytest.mark.parametrize("attack", ["apgd-ce(iterations=9)", "short-suite", "fab-t(iterations=5)"])
@pytest.mark.parametrize("eot", [1, 3])
def test_the_count_is_what_the_model_saw(attack: str, eot: int) -> None:
    model = Counting(small_conv()).eval()
    name = attack if eot == 1 else {"short-suite": "apgd-t(iterations=4,eot=3)"}.get(attack, attack[:-1] + ",eot=3)")
    examples = labelled(small_conv(), uniform(9, 3, 8, 8))
    subject = engine(model, name, [0.005, 0.03], batch_size=4)
    list(subject.run(examples))
    assert sum(c.forward for c in subject.costs.values()) == model.forwards
    assert sum(c.backward for c in subject.costs.values()) == model.backwards
    assert model.largest == 4
    assert subject.costs["verification"].forward > 0


def test_randomised_models_are_averaged() -> None:
    """Noise from a bank of four, one after the other: eot=4 sees their mean, which is nothing."""
    bank = 40 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    bank -= bank.mean(dim=0)
    model = hadamard_model(4)
    noisy = Wrapped(model, lambda logits, _x, calls: logits + bank[calls % 4]).eval()
    examples = labelled(model, 0.5 + 0.2 * (uniform(6, 1, 8, 8) - 0.5))
    for attack in ("pgd-5(eot=4)", "apgd-t(iterations=5,eot=4)", "square(queries=10,eot=4)"):
        plain = run(model, examples, attack.replace(",eot=4", "").replace("(eot=4)", ""), [0.001, 0.004])
        averaged = run(noisy, examples, attack, [0.001, 0.004])
        assert [[at_eps.robust for at_eps in o.eps_outcomes] for o in averaged] == [
            [at_eps.robust for at_eps in o.eps_outcomes] for o in plain
        ]
    assert any(o.clean_prediction != e.label for o, e in zip(run(noisy, examples, "none", 0), examples, strict=True))


def test_the_mean_over_passes() -> None:
    model = Wrapped(hadamard_model(3), lambda logits, _x, calls: logits * calls).eval()
    x = uniform(2, 1, 8, 8)
    logits = Evaluator(model, 8, eot=3).logits(x)
    assert torch.allclose(logits, 2 * model.model(x), rtol=1e-4)
    model.calls = 0
    values = Evaluator(model, 8, eot=3).gradient(x, lambda z, _a, _b: z[:, 0])
    assert torch.allclose(values[1], 2 * model.model(x)[:, 0], rtol=1e-4)
    assert torch.allclose(values[2].flatten(1), 2 * model.model.weight[0].detach().expand(2, -1))


def test_gradients_can_be_written_to() -> None:
    """That of a sum is one number seen many times; writing to a pixel of it would change all."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.sum(dim=(1, 2, 3))
            return torch.stack([total, -total], dim=1)

    grad = Evaluator(Sum().eval(), 8).gradient(uniform(3, 1, 4, 4), lambda z, _a, _b: z[:, 0])[2]
    grad[1] = 5
    assert torch.equal(grad[0], torch.ones(1, 4, 4))
    assert torch.equal(grad[1], torch.full((1, 4, 4), 5.0))


def test_one_pass_for_several_attacks_gives_each_row_its_own() -> None:
    """Rows that want a gradient are passed first; all come back in their order, with the others' gradients zero."""
    model, x = hadamard_model(4), uniform(6, 1, 8, 8)
    evaluator = Evaluator(model, 4)  # smaller than the pass
    columns = {"x0": x, "label": torch.zeros(6).long(), "target": torch.ones(6).long()}
    attacks = [PGD(iterations=3), Square(), CW(iterations=3)]
    steps = [torch.tensor([0, 9, 0, 9, 9, 0]), torch.zeros(6).long(), torch.zeros(6).long()]
    states = [AttackState(columns, step=step) for step in steps]
    units = np.zeros((6, 3), dtype=np.int64)
    rows = [Rows(s, units, a.wants_gradient(s).numpy()) for a, s in zip(attacks, states, strict=True)]
    queries = [Query(attack, each, x, x) for attack, each in zip(attacks, rows, strict=True)]
    for query, got in zip(queries, evaluate(evaluator, queries), strict=True):
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        loss = query.attack.loss(logits, columns["label"], columns["target"])
        gradient = (
            torch.autograd.grad(loss.sum(), leaf)[0] * query.attack.wants_gradient(query.state)[:, None, None, None]
        )
        assert torch.allclose(got.logits, logits, rtol=1e-4, atol=1e-3)
        assert torch.allclose(got.loss, loss, rtol=1e-4, atol=1e-3)
        assert torch.allclose(got.gradient, gradient, rtol=1e-4, atol=1e-3)
    counts = {name: (cost.forward, cost.backward) for name, cost in evaluator.costs.items()}
    assert counts == {"pgd-3": (6, 3), "square": (6, 0), "cw-3": (6, 6)}


# Memory ---------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Has memory for this many images."""

    def __init__(self, limit: int, error: Exception) -> None:
        super().__init__()
        self.model, self.limit, self.error = Counting(small_conv()), limit, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise self.error
        return self.model(x)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_the_batch_is_halved_until_it_fits(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    examples = labelled(small_conv(), uniform(20, 3, 8, 8))
    model = Small(3, error).eval()
    attack = "short-suite" if error is ERRORS[0] else "pgd-2"
    subject = engine(model, attack, [0.005, 0.05], batch_size=16)
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        outcomes = sorted(subject.run(examples), key=lambda o: o.index)
    assert subject.evaluator.batch_size == 2
    assert [r.getMessage()[:34] for r in caplog.records] == [
        f"Out of memory at batch size {n}; goin"[:34] for n in (16, 8, 4)
    ]
    roomy = run(small_conv(), examples, attack, [0.005, 0.05], batch_size=16)
    assert [robust(outcomes, i) for i in range(2)] == [robust(roomy, i) for i in range(2)]
    assert sum(c.forward for c in subject.costs.values()) == model.model.forwards


def test_one_image_that_does_not_fit_is_an_error() -> None:
    model = Small(0, torch.OutOfMemoryError("CUDA out of memory.")).eval()
    with pytest.raises(AttackError, match="batch size 1"):
        run(model, labelled(small_conv(), uniform(3, 3, 8, 8)), "pgd-2", 0.1)


def test_other_errors_are_not_swallowed() -> None:
    model = Small(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied")).eval()
    with pytest.raises(RuntimeError, match="shapes"):
        run(model, labelled(small_conv(), uniform(3, 3, 8, 8)), "pgd-2", 0.1)
    assert not is_out_of_memory(ValueError("out of range"))


def test_finite_values_whose_sum_is_not() -> None:
    require_finite(torch.full((2, 3), 3e38), lambda i: i, "here")
    with pytest.raises(AttackError, match=r"here \(image 11\)"):
        require_finite(torch.tensor([[1.0, 2], [torch.inf, -torch.inf]]), lambda i: 10 + i, "here")


def test_low_precision_search_is_verified_in_float32() -> None:
    model = small_conv()
    examples = labelled(model, uniform(10, 3, 8, 8))
    outcomes = run(model, examples, "apgd-ce(iterations=8)", [0.005, 0.03], precision="bfloat16", keep_images=True)
    assert 0 < sum(robust(outcomes, 1)) < 10 or not any(robust(outcomes, 1))
    for outcome in outcomes:
        for at_eps in outcome.eps_outcomes:
            assert (int(model(at_eps.image[None]).argmax()) == outcome.label) == at_eps.robust


def test_recipes_carry_eot_to_the_evaluator() -> None:
    assert engine(small_conv(), "apgd-ce(eot=5)", 0.1).evaluator.eot == 5
    assert parse_recipe("apgd-ce").eot == Recipe("x").eot == 1
