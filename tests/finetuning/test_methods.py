"""TeCoA, FARE, PMG-AFT, Sim-CLIP, TRADES and clean fine-tuning against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method
from clipguard.finetuning.methods.classes.clean import Clean
from clipguard.finetuning.methods.classes.pmg_aft import PMGAFT
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.classes.trades import TRADES
from clipguard.finetuning.methods.embeddings.fare import FARE
from clipguard.finetuning.methods.embeddings.sim_clip import SimCLIP

# Unit vectors in the plane at these angles, two classes at 0 and 90 degrees: logits are s cos and s sin.
TEXT = torch.eye(2)
SCALE = 4.0
ANGLES = {
    "adversarial": (0.9, 0.3),
    "clean": (0.2, 1.4),
    "original_adversarial": (0.6, 1.0),
    "original_clean": (0.1, 1.5),
}


def at(angles: tuple[float, ...], length: float = 1.0) -> Tensor:
    return length * torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


@pytest.fixture
def batch() -> Batch:
    towers = {name: at(angles, length=2.0) for name, angles in ANGLES.items()}
    for name in ("adversarial", "clean"):
        towers[name].requires_grad_()
    return Batch(TEXT, TEXT, SCALE, torch.tensor([0, 1]), **towers)


def probabilities(angle: float, scale: float) -> tuple[float, float]:
    first = 1 / (1 + math.exp(scale * (math.sin(angle) - math.cos(angle))))
    return first, 1 - first


def ce(name: str, scale: float = SCALE) -> float:
    """Mean cross-entropy of the two images, whose labels are 0 and 1."""
    return -sum(math.log(probabilities(a, scale)[y]) for y, a in enumerate(ANGLES[name])) / 2


def kl(teacher: str, student: str, scale: float = SCALE) -> float:
    """Mean KL(teacher || student) over the two images."""
    total = 0.0
    for a, b in zip(ANGLES[teacher], ANGLES[student], strict=True):
        p, q = probabilities(a, scale), probabilities(b, scale)
        total += sum(p[k] * math.log(p[k] / q[k]) for k in (0, 1))
    return total / 2


def values(method: Method, batch: Batch) -> dict[str, float]:
    return {name: term.item() for name, term in method.terms(batch, 0.5).items()}


def only_needed(method: Method, batch: Batch) -> Batch:
    """The batch as the trainer makes it: what the method does not need is missing."""
    optional = ("labels", *ANGLES)
    return replace(batch, **{name: None for name in optional if name not in method.needs(0.5)})


def reached(term: Tensor, batch: Batch) -> set[str]:
    leaves = {"adversarial": batch.adversarial, "clean": batch.clean}
    present = {k: v for k, v in leaves.items() if v is not None}
    grads = torch.autograd.grad(term, list(present.values()), retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(present, grads, strict=True) if grad is not None}


def test_tecoa_is_cross_entropy_of_adversarial_images(batch: Batch) -> None:
    batch = only_needed(TeCoA(), batch)
    assert batch.clean is batch.original_clean is None
    assert values(TeCoA(), batch) == {"ce": pytest.approx(ce("adversarial"), rel=1e-5)}


def test_clean_is_cross_entropy_of_clean_images(batch: Batch) -> None:
    batch = only_needed(Clean(), batch)
    assert batch.adversarial is None
    assert values(Clean(), batch) == {"ce": pytest.approx(ce("clean"), rel=1e-5)}


def test_fare_needs_no_labels_and_does_not_normalise(batch: Batch) -> None:
    method = FARE()
    batch = only_needed(method, batch)
    assert batch.labels is batch.clean is None
    # chord of two points on a circle of radius 2: (2 * 2 sin(half the angle))^2
    chords = [
        16 * math.sin((a - b) / 2) ** 2 for a, b in zip(ANGLES["adversarial"], ANGLES["original_clean"], strict=True)
    ]
    assert values(method, batch) == {"distance": pytest.approx(sum(chords) / 2, rel=1e-5)}
    assert batch.adversarial is not None
    objective = method.attack_objective(batch.adversarial, batch)
    torch.testing.assert_close(objective, torch.tensor(chords))
    twice = replace(batch, adversarial=2 * batch.adversarial, original_clean=2 * batch.original_clean)  # type: ignore[operator]
    assert values(method, twice)["distance"] == pytest.approx(4 * sum(chords) / 2, rel=1e-5)


def test_fare_with_a_share_of_clean_images(batch: Batch) -> None:
    method = FARE(clean_weight=0.25)
    batch = only_needed(method, batch)
    plain = values(FARE(), batch)["distance"]
    clean = [16 * math.sin((a - b) / 2) ** 2 for a, b in zip(ANGLES["clean"], ANGLES["original_clean"], strict=True)]
    expected = {"distance": pytest.approx(0.75 * plain), "clean": pytest.approx(0.25 * sum(clean) / 2, rel=1e-4)}
    assert values(method, batch) == expected
    with pytest.raises(FinetuneError, match="clean_weight is a share, from 0 to 1, not 2"):
        FARE(clean_weight=2)


def test_pmg_aft_of_the_paper(batch: Batch) -> None:
    method = PMGAFT(lam_original=2, lam_clean=3)
    batch = only_needed(method, batch)
    assert batch.original_clean is None
    assert values(method, batch) == {
        "ce": pytest.approx(ce("adversarial"), rel=1e-5),
        "kl_original": pytest.approx(2 * kl("original_adversarial", "adversarial"), rel=1e-5),
        "kl_clean": pytest.approx(3 * kl("clean", "adversarial"), rel=1e-5),
    }
    terms = method.terms(batch, 0.0)
    assert reached(terms["kl_clean"], batch) == {"adversarial"}  # the clean prediction is a fixed target


def test_pmg_aft_of_the_repository(batch: Batch) -> None:
    """Bare cosines, sums over the batch of two, and gradients through the clean prediction."""
    method = PMGAFT(variant="repository")
    assert values(method, batch) == {
        "ce": pytest.approx(ce("adversarial", 1.0), rel=1e-5),
        "kl_original": pytest.approx(2 * kl("original_adversarial", "adversarial", 1.0), rel=1e-4),
        "kl_clean": pytest.approx(2 * kl("clean", "adversarial", 1.0), rel=1e-4),
    }
    assert reached(method.terms(batch, 0.0)["kl_clean"], batch) == {"adversarial", "clean"}
    assert batch.adversarial is not None
    objective = method.attack_objective(batch.adversarial, batch)
    assert objective.mean().item() == pytest.approx(ce("adversarial", 1.0), rel=1e-5)


def test_pmg_aft_without_teachers_is_tecoa(batch: Batch) -> None:
    method = PMGAFT(lam_original=0, lam_clean=0)
    assert method.needs(0.0) == TeCoA().needs(0.0)
    assert values(method, only_needed(method, batch)) == values(TeCoA(), batch)


def test_trades(batch: Batch) -> None:
    method = TRADES(beta=5)
    batch = only_needed(method, batch)
    expected = {
        "ce": pytest.approx(ce("clean"), rel=1e-5),
        "kl": pytest.approx(5 * kl("clean", "adversarial"), rel=1e-5),
    }
    assert values(method, batch) == expected
    assert reached(method.terms(batch, 0.0)["kl"], batch) == {"adversarial", "clean"}
    assert batch.adversarial is not None
    objective = method.attack_objective(batch.adversarial, batch)
    assert objective.shape == (2,)
    assert objective.mean().item() == pytest.approx(kl("clean", "adversarial"), rel=1e-5)


def test_sim_clip_of_the_code_has_one_half(batch: Batch) -> None:
    method = SimCLIP()
    batch = only_needed(method, batch)
    assert batch.labels is batch.clean is None
    cosines = [math.cos(a - b) for a, b in zip(ANGLES["adversarial"], ANGLES["original_clean"], strict=True)]
    assert values(method, batch) == {"adversarial": pytest.approx(0.5 * (1 - sum(cosines) / 2), rel=1e-4)}
    assert batch.adversarial is not None
    torch.testing.assert_close(
        method.attack_objective(batch.adversarial, batch), FARE().attack_objective(batch.adversarial, batch)
    )


def test_sim_clip_of_the_equation_pulls_both_ways(batch: Batch) -> None:
    method = SimCLIP(clean="tuned")
    batch = only_needed(method, batch)
    assert batch.original_clean is None
    cosines = [math.cos(a - b) for a, b in zip(ANGLES["adversarial"], ANGLES["clean"], strict=True)]
    half = pytest.approx(0.5 * (1 - sum(cosines) / 2), rel=1e-4)
    assert values(method, batch) == {"adversarial": half, "clean": half}
    terms = method.terms(batch, 0.0)
    assert {name: reached(term, batch) for name, term in terms.items()} == {
        "adversarial": {"adversarial"},
        "clean": {"clean"},
    }
