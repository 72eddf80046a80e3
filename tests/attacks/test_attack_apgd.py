"""Auto-PGD, step by step, against the paper's algorithm written again and against the reference implementation."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from attack_models import small_conv, uniform
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from clipguard.attacks.methods.apgd import APGD, APGDDLR, APGDTargeted, checkpoints, period_ends
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import NORMS, ThreatModel
from clipguard.core.eps import Norm

# Too small for success, past which the DLR loss is flat and only rounding decides what is an increase.
EPS: dict[Norm, float] = {"linf": 3 / 255, "l2": 0.1}


def test_checkpoints_are_those_of_the_reference() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [11, 21, 30, 38, 45]
    assert checkpoints(20) == [4, 7, *range(9, 21)]
    assert checkpoints(10) == list(range(2, 11))
    assert checkpoints(1) == [1]
    ends = period_ends(100).tolist()
    assert len(ends) == 101
    assert {step: length for step, length in enumerate(ends) if length} == {
        **{22: 22, 41: 19, 57: 16, 70: 13},
        **{80: 10, 87: 7, 93: 6, 99: 6},
    }


@dataclass
class Trace:
    """One image's run: everything after each evaluated point."""

    points: list[Tensor]
    best: list[float]
    steps: list[float]


def losses_of(kind: str, logits: Tensor, label: int, target: int) -> Tensor:
    """The three losses as the papers print them, for one image."""
    if kind == "apgd-ce":
        return F.cross_entropy(logits[None], torch.tensor([label]))
    z = logits.sort(descending=True).values
    if kind == "apgd-t":
        return -(logits[label] - logits[target]) / (z[0] - (z[2] + z[3]) / 2 + 1e-12)
    rival = z[1] if logits[label] == z[0] else z[0]
    return -(logits[label] - rival) / (z[0] - z[2] + 1e-12)


def restated(
    model: nn.Module, kind: str, x0: Tensor, start: Tensor, label: int, target: int, eps: float, norm: Norm, n: int
) -> Trace:
    """Algorithm 1 of the paper for one image (3, H, W), with the reference's first checkpoint and step sizes."""

    def evaluate(x: Tensor) -> tuple[float, Tensor]:
        leaf = x.clone().requires_grad_()
        loss = losses_of(kind, model(leaf[None])[0], label, target)
        return float(loss.detach()), torch.autograd.grad(loss.sum(), leaf)[0]

    def project(x: Tensor) -> Tensor:
        if norm == "linf":
            return torch.clamp(torch.min(torch.max(x, x0 - eps), x0 + eps), 0, 1)
        delta = x - x0
        return (x0 + delta / (delta.norm() + 1e-12) * min(eps, float(delta.norm()))).clamp(0, 1)

    x, x_old = start, start
    loss, grad = evaluate(x)
    best, x_best, grad_best = loss, x, grad
    best_before, halved, size, history = best, True, 2 * eps, [0.0]
    trace = Trace([x], [best], [size])
    for i in range(n):
        a = 0.75 if i > 0 else 1.0
        direction = grad.sign() if norm == "linf" else grad / (grad.norm() + 1e-12)
        z = project(x + size * direction)
        new = project(x + a * (z - x) + (1 - a) * (x - x_old))
        x_old, x = x, new
        loss, grad = evaluate(x)
        history.append(loss)
        if loss > best:
            best, x_best, grad_best = loss, x, grad
        point = x
        if i + 1 in checkpoints(n):
            period = i + 1 - max([0, *(c for c in checkpoints(n) if c <= i)])
            rises = sum(history[k] > history[k - 1] for k in range(i + 2 - period, i + 2))
            halved = rises <= 0.75 * period or (not halved and best <= best_before)
            best_before = best
            if halved:
                size, x, grad = size / 2, x_best, grad_best
        trace.points.append(point)
        trace.best.append(best)
        trace.steps.append(size)
    return trace


def begin(attack: APGD, model: nn.Module, images: Tensor, eps: float, norm: Norm, run: int = 0) -> AttackState:
    """The state of this run for these images, with the labels that the model gives them."""
    with torch.no_grad():
        order = model(images).argsort(dim=1, descending=True)
    n = len(images)
    state = AttackState(
        item=torch.arange(n), x0=images, label=order[:, 0], ranking=order[:, 1:], step=torch.zeros(n).long()
    )
    state["run"], state["eps"] = torch.full((n,), run), torch.full((n,), eps, dtype=images.dtype)
    state["target"] = attack.choose_target(state)
    attack.start(state, ThreatModel(norm), PerImageRandom(0, attack.name, range(n), [run] * n, images.device))
    return state


def trace(attack: APGD, model: nn.Module, state: AttackState, norm: Norm) -> list[Trace]:
    """All iterations, without the engine's stop at the first success."""
    traces = [Trace([], [], []) for _ in range(state.n)]
    for _ in range(attack.iterations + 1):
        x = attack.query(state)
        for i in range(state.n):
            traces[i].points.append(x[i].clone())
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        loss = attack.loss(logits, state["label"], state["target"])
        grad = torch.autograd.grad(loss.sum(), leaf)[0]
        attack.update(state, ThreatModel(norm), x, logits.detach(), loss.detach(), grad)
        state["step"] = state["step"] + 1
        for i in range(state.n):
            traces[i].best.append(float(state["loss_best"][i]))
            traces[i].steps.append(float(state["step_size"][i]))
    assert attack.finished(state).all()
    return traces


KINDS = {"apgd-ce": APGD, "apgd-dlr": APGDDLR, "apgd-t": APGDTargeted}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_iterate_is_that_of_the_algorithm(kind: str, norm: Norm) -> None:
    """In double precision, so that no rounding can flip the sign of a gradient."""
    model, attack = small_conv().double(), KINDS[kind](iterations=40)
    images = uniform(3, 3, 12, 12).double()
    state = begin(attack, model, images, EPS[norm], norm, run=1 if kind == "apgd-t" else 0)
    starts = state["x"].clone()
    labels, targets = state["label"].tolist(), state["target"].tolist()
    ours = trace(attack, model, state, norm)
    for i in range(3):
        expected = restated(model, kind, images[i], starts[i], labels[i], targets[i], float(state["eps"][i]), norm, 40)
        assert ours[i].steps == pytest.approx(expected.steps, rel=1e-5)
        assert ours[i].best == pytest.approx(expected.best, rel=1e-4, abs=1e-6)
        for mine, theirs in zip(ours[i].points, expected.points, strict=True):
            assert torch.allclose(mine, theirs.to(mine.dtype), atol=1e-4)
        assert ours[i].steps[-1] < ours[i].steps[0] / 2  # halvings did happen


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_best_loss_is_that_of_the_reference(kind: str, norm: Norm) -> None:
    model, attack = small_conv(), KINDS[kind](iterations=50)
    images = uniform(6, 3, 12, 12, seed=1)
    state = begin(attack, model, images, EPS[norm], norm, run=2 if kind == "apgd-t" else 0)
    theirs_kind = APGDAttack_targeted if kind == "apgd-t" else APGDAttack
    theirs = theirs_kind(model, n_iter=50, norm={"linf": "Linf", "l2": "L2"}[norm], eps=EPS[norm], device="cpu")
    theirs.loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted"}[kind]
    theirs.y_target = state["target"]
    theirs.init_hyperparam(images)
    _, right, loss, _ = theirs.attack_single_run(images, state["label"], x_init=state["x"].clone())
    ours = trace(attack, model, state, norm)
    assert [t.best[-1] for t in ours] == pytest.approx(loss.tolist(), rel=1e-3)
    with torch.no_grad():
        wrong = torch.stack(
            [(model(torch.stack(t.points)).argmax(1) != y).any() for t, y in zip(ours, state["label"], strict=True)]
        )
    assert torch.equal(wrong, ~right.bool())


def test_when_steps_are_halved() -> None:
    """Scripted losses, one image for each reason of section 3.1 to halve a step or to keep it."""
    attack, threat, n = APGD(), ThreatModel("linf"), 3
    state = begin(attack, small_conv(), uniform(n, 3, 4, 4), 0.1, "linf")
    sizes = [state["step_size"].tolist()]
    for step in range(101):
        # Always rising to new heights; always rising, but never to the height of the start; always falling.
        loss = torch.tensor([float(step), step if step else 1000.0, -step])
        attack.update(state, threat, state["x"], torch.zeros(n, 10), loss, torch.zeros_like(state["x"]))
        state["step"] = state["step"] + 1
        sizes.append(state["step_size"].tolist())
    halved = [[step for step in range(101) if sizes[step + 1][i] < sizes[step][i]] for i in range(n)]
    assert halved == [[], [41, 70, 87, 99], checkpoints(100)]


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_lies_on_the_sphere_and_belongs_to_the_image(norm: Norm) -> None:
    model, attack = small_conv(), APGD()
    images = 0.5 + 0.1 * uniform(4, 3, 12, 12)
    state = begin(attack, model, images, 0.2, norm)
    assert torch.allclose(ThreatModel(norm).distance(state["x"], images), torch.tensor(0.2), atol=1e-5)
    again = begin(attack, model, images, 0.1, norm)
    assert torch.allclose((again["x"] - images) * 2, state["x"] - images, atol=1e-6)
    assert not torch.allclose(begin(attack, model, images, 0.2, norm, run=1)["x"], state["x"], atol=0.01)
    assert not torch.allclose(state["x"][0] - images[0], state["x"][1] - images[1], atol=0.01)
