"""TIMA's terms against closed forms, and who gets which gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.classes.tima import (
    TIMA,
    MarginMode,
    distillation,
    hyperspherical_energy,
    margins,
    off_diagonal,
)

C, B, D = 6, 4, 8


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def batch() -> Batch:
    """Every tensor a leaf, those in training with gradients."""
    return Batch(
        text=unit(C, D, seed=0).requires_grad_(),
        original_text=unit(C, D, seed=1),
        logit_scale=50.0,
        labels=torch.tensor([0, 5, 2, 2]),
        adversarial=(3 * unit(B, D, seed=2)).requires_grad_(),
        clean=(2 * unit(B, D, seed=3)).requires_grad_(),
        original_clean=2.5 * unit(B, D, seed=4),
    )


# MHE: section 2.1 of the literature's facts, for unit vectors and alpha = 2.


def test_energy_of_a_pair_is_bounded() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for other, value in ((east, 1.0), (north, 1 / 3), (-east, 1 / 5)):
        assert float(hyperspherical_energy(torch.stack([east, other]))) == pytest.approx(value, abs=1e-5)
    for angle in torch.linspace(0.1, 3, 7):
        pair = torch.stack([east, torch.stack([angle.cos(), angle.sin()])])
        assert float(hyperspherical_energy(pair)) == pytest.approx(1 / (3 - 2 * math.cos(angle)), rel=1e-5)


@pytest.mark.parametrize("points", [3, 5, 9])
def test_a_simplex_has_the_least_energy(points: int) -> None:
    simplex = F.normalize(torch.eye(points) - 1 / points, dim=1)
    least = 1 / (3 + 2 / (points - 1))
    assert float(hyperspherical_energy(simplex)) == pytest.approx(least, rel=1e-5)
    for seed in range(20):
        assert float(hyperspherical_energy(unit(points, points, seed=seed))) > least


def test_the_gradient_of_the_bounded_energy_is_bounded() -> None:
    """d/dcos = 2 / (3 - 2 cos)^2, in [2/25, 2], where that of the inverse form has no bound."""
    for angle in (1e-2, 0.5, 1.5, 3.1):
        cos = torch.tensor(math.cos(angle), dtype=torch.float64, requires_grad=True)
        pair = torch.stack(
            [torch.tensor([1.0, 0.0], dtype=torch.float64), torch.stack([cos, (1 - cos.detach() ** 2).sqrt()])]
        )
        hyperspherical_energy(pair).backward()
        assert cos.grad is not None
        assert float(cos.grad) == pytest.approx(2 / (3 - 2 * math.cos(angle)) ** 2, rel=1e-6)
        assert 2 / 25 <= float(cos.grad) <= 2


def test_the_inverse_form_is_the_riesz_energy() -> None:
    text = unit(5, 3, seed=0)
    distances = off_diagonal(torch.cdist(text, text))
    for alpha in (1.0, 2.0, 3.0):
        expected = float((1 / distances**alpha).mean())
        assert float(hyperspherical_energy(text, alpha, "inverse")) == pytest.approx(expected, rel=1e-4)
        bounded = float((1 / (1 + distances**alpha)).mean())
        assert float(hyperspherical_energy(text, alpha)) == pytest.approx(bounded, rel=1e-4)


@pytest.mark.parametrize("form", ["bounded", "inverse"])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_two_classes_of_one_name_do_no_harm(form: str, alpha: float) -> None:
    text = unit(3, 4, seed=0)[[0, 1, 1, 2]].requires_grad_()
    energy = hyperspherical_energy(text, alpha, form)  # type: ignore[arg-type]
    energy.backward()
    assert torch.isfinite(energy)
    assert torch.isfinite(text.grad).all()  # type: ignore[arg-type]


# Distillation.


def test_distillation_is_zero_at_the_start_and_positive_after(batch: Batch) -> None:
    same = replace(batch, text=batch.original_text, adversarial=batch.original_clean)
    terms = TIMA().terms(same, 0.0)
    assert float(terms["iakd"]) == 0
    assert float(terms["takd"]) == 0
    terms = TIMA().terms(batch, 0.0)
    assert terms["iakd"].item() > 0
    assert terms["takd"].item() > 0


def test_a_common_vector_added_to_all_texts_leaves_distillation_unchanged() -> None:
    z, t0, t, shift = (unit(*shape, seed=i).double() for i, shape in enumerate([(B, D), (C, D), (C, D), (1, D)]))
    plain = distillation(z, t0, z, t, 100, 1)
    shifted = distillation(z, t0, z, t + 3 * shift, 100, 1)
    assert float(shifted) == pytest.approx(float(plain), rel=1e-9)
    assert float(distillation(z, t0, z, t0 + shift, 100, 1)) == pytest.approx(0, abs=1e-9)
    assert float(distillation(z, t0, z, t0.flip(0), 100, 1)) > 0.1


def test_distillation_by_hand() -> None:
    """Two classes, teacher logits (ln 3, 0) -> (3/4, 1/4), student (0, 0) -> (1/2, 1/2), at temperature 2."""
    z = torch.tensor([[1.0, 0.0]])
    teacher, student = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation(z, teacher, z, student, 2, 2)) == pytest.approx(4 * kl)


def test_distillation_is_on_the_scale_of_the_models_logits(batch: Batch) -> None:
    default, same, other = (TIMA(kd_scale=scale).terms(batch, 0.0) for scale in (None, batch.logit_scale, 100.0))
    for term in ("iakd", "takd"):
        assert default[term].item() == same[term].item() != other[term].item()


def test_feature_distillation_and_clean_students(batch: Batch) -> None:
    cosine = F.cosine_similarity(batch.adversarial, batch.original_clean)  # type: ignore[arg-type]
    terms = TIMA(takd_kind="feature", lam_takd=3).terms(batch, 0.0)
    assert terms["takd"].item() == pytest.approx(3 * (1 - cosine).mean().item(), rel=1e-5)
    clean = TIMA(takd_student="clean")
    assert "clean" in clean.needs(0.0)
    same = replace(batch, clean=batch.original_clean)
    assert float(clean.terms(same, 0.0)["takd"]) == 0


# Margins.


@pytest.mark.parametrize("mode", ["distance", "similarity", "constant"])
def test_margins_have_a_zero_diagonal_and_the_asked_for_mean(mode: MarginMode) -> None:
    found = margins(unit(C, D, seed=0), mode, 0.02)
    assert torch.equal(found.diagonal(), torch.zeros(C))
    assert float(off_diagonal(found).mean()) == pytest.approx(0.02, rel=1e-5)
    assert (found >= 0).all()
    torch.testing.assert_close(found, found.T)


def test_margins_do_not_depend_on_the_scale_of_distances() -> None:
    """Small tangent offsets around one direction: doubling them doubles all distances, and leaves every margin."""
    base, offsets = torch.zeros(5, 9, dtype=torch.float64), torch.zeros(5, 9, dtype=torch.float64)
    base[:, 0] = 1
    offsets[:, 1:] = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, far = (F.normalize(base + scale * offsets, dim=1) for scale in (1e-4, 2e-4))
    spread = off_diagonal(torch.cdist(far, far)).mean() / off_diagonal(torch.cdist(near, near)).mean()
    assert float(spread) == pytest.approx(2, rel=1e-4)
    torch.testing.assert_close(margins(near, "distance", 0.02), margins(far, "distance", 0.02), rtol=1e-4, atol=0)


def test_the_direction_of_margins() -> None:
    text = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.3], [0.0, 1.0]]), dim=1)
    distance, similarity = margins(text, "distance", 0.02), margins(text, "similarity", 0.02)
    assert distance[0, 2] > distance[0, 1]  # farther, so a larger margin
    assert similarity[0, 2] < similarity[0, 1]
    assert float(distance[0, 2] / distance[0, 1]) == pytest.approx(
        float((text[0] - text[2]).norm() / (text[0] - text[1]).norm())
    )


def test_tam_by_hand() -> None:
    """Orthogonal texts: all margins are equal, so TAM is -log of one softmax that can be written down."""
    text, z, scale, margin = torch.eye(3), torch.tensor([[0.8, 0.6, 0.0]]), 10.0, 0.05
    batch = Batch(text, text, scale, torch.tensor([0]), adversarial=2 * z)
    own = math.exp(scale * 0.8)
    others = math.exp(scale * (0.6 + margin)) + math.exp(scale * margin)
    expected = -math.log(own / (own + others))
    for mode in ("distance", "similarity", "constant"):
        method = TIMA(margin_mode=mode, margin=margin, lam_takd=0, lam_iat=0)  # type: ignore[arg-type]
        assert float(method.terms(batch, 0.0)["tam"]) == pytest.approx(expected, rel=1e-5)


# The whole.


@pytest.mark.parametrize(
    "method",
    [
        TIMA(text="frozen", margin=0, lam_takd=0),
        TIMA(text="frozen", margin_mode="none", lam_takd=0),
        TIMA(margin=0, lam_takd=0, lam_iat=0),
        TIMA(margin=0, lam_takd=0, lam_mhe=0, lam_iakd=0),
    ],
)
def test_without_margin_and_weights_it_is_tecoa_exactly(method: TIMA, batch: Batch) -> None:
    tecoa = TeCoA()
    assert method.needs(0.0) == tecoa.needs(0.0)
    ours, theirs = method.terms(batch, 0.0), tecoa.terms(batch, 0.0)
    assert set(ours) == {"tam"}
    assert torch.equal(ours["tam"], theirs["ce"])
    (grad,) = torch.autograd.grad(ours["tam"], [batch.adversarial])  # type: ignore[list-item]
    (expected,) = torch.autograd.grad(theirs["ce"], [batch.adversarial])  # type: ignore[list-item]
    assert torch.equal(grad, expected)
    objective = method.attack_objective(batch.adversarial, batch)  # type: ignore[arg-type]
    assert torch.equal(objective, tecoa.attack_objective(batch.adversarial, batch))  # type: ignore[arg-type]


@pytest.mark.parametrize("student", ["adversarial", "clean"])
@pytest.mark.parametrize("mode", ["distance", "similarity"])
def test_each_side_gets_its_own_gradient_only(student: str, mode: str, batch: Batch) -> None:
    method = TIMA(takd_student=student, margin_mode=mode)  # type: ignore[arg-type]
    terms = method.terms(batch, 0.0)
    assert set(terms) == {"mhe", "iakd", "tam", "takd"}
    images = {"adversarial": batch.adversarial, "clean": batch.clean}
    reached = {
        name: {
            what
            for what, leaf in {"text": batch.text, **images}.items()
            if torch.autograd.grad(term, [leaf], retain_graph=True, allow_unused=True)[0] is not None  # type: ignore[list-item]
        }
        for name, term in terms.items()
    }
    assert reached == {"mhe": {"text"}, "iakd": {"text"}, "tam": {"adversarial"}, "takd": {student}}


def test_weights_multiply_their_terms(batch: Batch) -> None:
    plain = TIMA().terms(batch, 0.0)
    heavy = TIMA(lam_iat=2, lam_mhe=3, lam_iakd=5, lam_takd=7).terms(batch, 0.0)
    factors = {"mhe": 6, "iakd": 10, "tam": 1, "takd": 7}
    for name, factor in factors.items():
        assert heavy[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-6)
    for off in ("lam_mhe", "lam_iakd", "lam_takd"):
        assert off.removeprefix("lam_") not in TIMA(**{off: 0}).terms(batch, 0.0)  # type: ignore[arg-type]


def test_the_attack_sees_the_margin_only_if_asked(batch: Batch) -> None:
    adversarial = batch.adversarial
    assert adversarial is not None
    plain = F.cross_entropy(batch.logits(adversarial), batch.labels, reduction="none")  # type: ignore[arg-type]
    assert torch.equal(TIMA(margin=0.5).attack_objective(adversarial, batch), plain)
    margin = TIMA(margin=0.5, attack_loss="margin")
    objective = margin.attack_objective(adversarial, batch)
    assert (objective > plain).all()
    assert objective.mean().item() == pytest.approx(margin.terms(batch, 0.0)["tam"].item(), rel=1e-6)


def test_text_first_needs_no_attack_and_then_leaves_the_text_alone(batch: Batch) -> None:
    method = TIMA(schedule="iat_first", iat_share=0.25)
    assert method.needs(0.0) == method.needs(0.249) == {"original_clean"}
    assert set(method.terms(replace(batch, labels=None, adversarial=None, clean=None), 0.1)) == {"mhe", "iakd"}
    assert method.needs(0.25) == {"labels", "adversarial", "original_clean"}
    terms = method.terms(batch, 0.25)
    assert set(terms) == {"tam", "takd"}
    assert all(
        torch.autograd.grad(t, [batch.text], retain_graph=True, allow_unused=True)[0] is None for t in terms.values()
    )
    assert TIMA(schedule="iat_first", lam_iakd=0).needs(0.0) == frozenset()


@pytest.mark.parametrize("text", ["frozen", "laat"])
def test_untuned_text_has_no_terms_of_its_own(text: str, batch: Batch) -> None:
    method = TIMA(text=text)  # type: ignore[arg-type]
    assert set(method.terms(batch, 0.0)) == {"tam", "takd"}
    assert method.text_mode() == text


def test_learning_rate_of_the_text() -> None:
    assert TIMA().text_learning_rate() == TIMA(text="free").text_learning_rate() == 1e-3
    assert TIMA(text="encoder").text_learning_rate() == 1e-6
    assert TIMA(text="encoder", text_lr=0.5).text_learning_rate() == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"kd_temperature": 0.0}, "kd_temperature must be above 0"),
        ({"iat_share": 1.0}, "iat_share is a share of the steps"),
        ({"schedule": "iat_first", "text": "laat"}, "needs a text to tune first"),
        ({"schedule": "iat_first", "lam_iat": 0.0}, "needs a text to tune first"),
        ({"schedule": "iat_first", "lam_mhe": 0.0, "lam_iakd": 0.0}, "needs a text to tune first"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        TIMA(**options)  # type: ignore[arg-type]
