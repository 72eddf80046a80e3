"""What cannot be attacked is an error that names the image; and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_models import Wrapped, engine, labelled, robust, run, small_conv, uniform
from torch import Tensor, nn

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.evaluator import frozen
from clipguard.core.errors import AttackError

ATTACKS = ["pgd-3", "apgd-t(iterations=3)", "fab-t(iterations=3)", "square(queries=3)"]


def examples(n: int = 4, first: int = 0) -> list[Example]:
    return labelled(small_conv(), uniform(n, 3, 8, 8), first)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_logits_of_a_clean_image(value: float) -> None:
    def spoil(logits: Tensor, x: Tensor, _: int) -> Tensor:
        sick = (x - bad).flatten(1).abs().amax(dim=1) == 0
        return torch.where(sick[:, None] & (torch.arange(10) == 3), value, logits)

    data = examples(5, first=20)
    bad = data[3].image
    with pytest.raises(AttackError, match=r"NaN or infinite values on the clean image \(image 23\)"):
        run(Wrapped(small_conv(), spoil).eval(), data, "none", 0.1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_logits_under_attack(attack: str, value: float) -> None:
    """The reference counts these as broken images."""
    data = examples(5, first=20)
    clean = torch.stack([e.image for e in data])

    def spoil(logits: Tensor, x: Tensor, _: int) -> Tensor:
        nearest = (x[:, None] - clean).flatten(2).abs().amax(dim=2)
        sick = (nearest.argmin(dim=1) == 2) & (nearest.amin(dim=1) > 0)
        return torch.where(sick[:, None] & (torch.arange(10) == 3), value, logits)

    with pytest.raises(AttackError, match=rf"under {attack.split('(')[0]} \(image 22\).*Check the weights"):
        run(Wrapped(small_conv(), spoil).eval(), data, attack, 0.001)


def test_bad_gradients() -> None:
    class Root(torch.autograd.Function):
        """Fine forwards, NaN backwards for the second image."""

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            del ctx
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            del ctx
            grad = grad.clone()
            grad[1] = torch.nan
            return grad

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(Root.apply(x))

    with pytest.raises(AttackError, match=r"in its gradient under apgd-ce \(image 8\)"):
        run(Model().eval(), examples(3, first=7), "apgd-ce", 0.001)


def test_no_gradient() -> None:
    model = Wrapped(small_conv(), lambda logits, _x, _c: logits.detach()).eval()
    with pytest.raises(AttackError, match="passes no gradient"):
        run(model, examples(), "pgd-3", 0.01)
    assert len(run(model, examples(), "square(queries=3)", 0.001)) == 4  # needs none
    stray = torch.zeros(10, requires_grad=True)
    model = Wrapped(small_conv(), lambda logits, _x, _c: logits.detach() + stray).eval()
    with pytest.raises(AttackError, match="passes no gradient"):
        run(model, examples(), "pgd-3", 0.01)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda z: z[:, 0], r"not \(4,\)"),
        (lambda z: z[:, :1], r"not \(4, 1\)"),
        (lambda z: z[:2], r"not \(2, 10\)"),
        (lambda z: z[:, :, None], r"not \(4, 10, 1\)"),
        (lambda z: (z, z), "not a tuple"),
    ],
)
def test_outputs_that_are_no_logits(change: Callable[[Tensor], Tensor], what: str) -> None:
    model = Wrapped(small_conv(), lambda logits, _x, _c: change(logits)).eval()
    with pytest.raises(AttackError, match=what):
        run(model, examples(), "pgd-3", 0.01)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range(label: int) -> None:
    data = examples(3)
    data[1] = Example(17, data[1].image, label)
    with pytest.raises(AttackError, match=rf"0 \.\.\. 9.*image 17 has {label}"):
        run(small_conv(), data, "pgd-3", 0.01)


@pytest.mark.parametrize("value", [-0.001, 1.001, 255.0, float("nan")])
def test_images_outside_0_1(value: float) -> None:
    data = examples(3)
    data[2].image[0, 1, 1] = value
    with pytest.raises(AttackError, match=r"\[0,1\] \(image 2\); normalisation"):
        run(small_conv(), data, "pgd-3", 0.01)


def test_train_mode() -> None:
    model = small_conv()
    model.head.train()  # a part is enough
    with pytest.raises(AttackError, match=r"model\.eval\(\)"):
        run(model, examples(), "pgd-3", 0.01)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eps_mode": "descending"}, {"precision": "float16"}])
def test_options(options: dict) -> None:
    with pytest.raises(AttackError, match=r"at least 1|Unknown"):
        EngineOptions(**options)


@pytest.mark.parametrize("attack", [*ATTACKS, "autoattack-fast"])
def test_the_model_and_the_global_generator_are_left_as_they_were(attack: str) -> None:
    model = small_conv()
    model.head.weight.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    data = examples()
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    run(model, data, attack, 0.05)
    assert torch.equal(torch.get_rng_state(), expected)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    assert all(e.image.grad is None and not e.image.requires_grad for e in data)


def test_the_model_is_restored_after_an_error_and_after_an_early_stop() -> None:
    model = small_conv()
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    data = examples()
    data[1].image[0, 0, 0] = 7
    with pytest.raises(AttackError):
        run(model, data, "pgd-2", 0.3)
    assert all(p.requires_grad for p in model.parameters())
    outcomes = engine(model, "pgd-2", 0.3, batch_size=1).run(examples())
    next(outcomes)
    outcomes.close()
    assert all(p.requires_grad for p in model.parameters())


def test_images_are_not_changed() -> None:
    data = examples(6)
    copies = [e.image.clone() for e in data]
    for attack in ATTACKS:
        outcomes = run(small_conv(), data, attack, [0.02, 0.3], keep_images=True)
        assert not all(robust(outcomes, 1))
    assert all(torch.equal(e.image, copy) for e, copy in zip(data, copies, strict=True))
