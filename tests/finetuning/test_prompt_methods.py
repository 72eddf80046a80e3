"""APT and FAP against numbers worked out by hand, and what they come to without their own parts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch
from clipguard.finetuning.methods.classes.clean import Clean
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.classes.trades import TRADES
from clipguard.finetuning.methods.prompts.apt import APT
from clipguard.finetuning.methods.prompts.design import PromptDesign
from clipguard.finetuning.methods.prompts.fap import FAP
from clipguard.finetuning.methods.registry import parse_method

# Unit vectors in the plane at these angles, two classes at 0 and 90 degrees: logits are s cos and s sin.
SCALE = 4.0
ADVERSARIAL, CLEAN = (0.9, 0.3), (0.2, 1.4)


def at(angles: tuple[float, ...]) -> Tensor:
    return 2 * torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


@pytest.fixture
def batch() -> Batch:
    other = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    clean, adversarial = at(CLEAN).requires_grad_(), at(ADVERSARIAL).requires_grad_()
    return Batch(torch.eye(2), other, SCALE, torch.tensor([0, 1]), adversarial, clean)


def first(angle: float, turned: float = 0.0) -> float:
    """Probability of the first class, whose text is turned by an angle as the second's."""
    return 1 / (1 + math.exp(SCALE * (math.sin(angle - turned) - math.cos(angle - turned))))


def kl(clean: float, adversarial: float) -> float:
    p, q = first(clean), first(adversarial)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def ce(angles: tuple[float, float]) -> float:
    return -(math.log(first(angles[0])) + math.log(1 - first(angles[1]))) / 2


def test_apt_is_cross_entropy_of_adversarial_images(batch: Batch) -> None:
    terms = APT().terms(batch, 0.5)
    assert terms["ce"].item() == pytest.approx(ce(ADVERSARIAL), rel=1e-5)
    assert terms.keys() == TeCoA().terms(batch, 0.5).keys()
    assert torch.equal(terms["ce"], TeCoA().terms(batch, 0.5)["ce"])
    assert APT().needs(0.5) == TeCoA().needs(0.5)


def test_apt_attacks_the_prompt_in_training_or_a_constant_one(batch: Batch) -> None:
    turned = math.atan2(0.8, 0.6)  # of the original text
    current = APT().attack_objective(at(ADVERSARIAL), batch)
    constant = APT(attack="constant").attack_objective(at(ADVERSARIAL), batch)
    assert current.mean().item() == pytest.approx(ce(ADVERSARIAL), rel=1e-5)
    assert constant.tolist() == pytest.approx(
        [-math.log(first(ADVERSARIAL[0], turned)), -math.log(1 - first(ADVERSARIAL[1], turned))], rel=1e-5
    )
    assert torch.equal(APT(attack="perturbed").attack_objective(at(ADVERSARIAL), batch), current)


def test_fap_weighs_the_divergence_by_how_alike_the_embeddings_are(batch: Batch) -> None:
    terms = FAP(lam=3).terms(batch, 0.5)
    assert terms["ce"].item() == pytest.approx(ce(CLEAN), rel=1e-5)
    alike = [kl(c, a) * (1 + math.cos(c - a)) for c, a in zip(CLEAN, ADVERSARIAL, strict=True)]
    assert terms["kl"].item() == pytest.approx(3 * sum(alike) / 2, rel=1e-4)
    assert FAP().attack_objective(at(ADVERSARIAL), batch).tolist() == pytest.approx(
        [kl(c, a) for c, a in zip(CLEAN, ADVERSARIAL, strict=True)], rel=1e-4
    )
    both = torch.autograd.grad(terms["kl"], [batch.clean, batch.adversarial])  # type: ignore[list-item]
    assert all(bool(gradient.abs().sum() > 0) for gradient in both)


def test_fap_without_its_own_parts(batch: Batch) -> None:
    """Without weight it is clean training; of orthogonal embeddings TRADES; of equal ones it asks for nothing."""
    nothing = FAP(lam=0).terms(batch, 0.5)
    assert (nothing["ce"], nothing["kl"]) == (Clean().terms(batch, 0.5)["ce"], 0)
    orthogonal = replace(batch, clean=at((0.1, 0.4)), adversarial=at((0.1 + math.pi / 2, 0.4 - math.pi / 2)))
    trades = TRADES(beta=1.5).terms(orthogonal, 0.5)
    assert FAP().terms(orthogonal, 0.5)["kl"].item() == pytest.approx(trades["kl"].item(), rel=1e-5)
    assert FAP().terms(replace(batch, adversarial=batch.clean), 0.5)["kl"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "design"),
    [
        ("apt", PromptDesign(16)),
        ("apt(tokens=4,position=middle,class_specific=true)", PromptDesign(4, "", "middle", class_specific=True)),
        ("apt(init=a_photo_of_a,position=front)", PromptDesign(0, "a photo of a", "front")),
        ("apt(attack=perturbed,ascent=0.5)", PromptDesign(16, ascent=0.5)),
        ("apt(attack=perturbed)", PromptDesign(16, ascent=0.02)),
        ("apt(tokens=3)", PromptDesign(3)),
        ("fap", PromptDesign(2, "a photo of a", blocks=9, vision=True)),
        ("fap(depth=1,tokens=3)", PromptDesign(3, "a photo of a", vision=True)),
    ],
)
def test_which_prompts_the_options_ask_for(text: str, design: PromptDesign) -> None:
    assert parse_method(text).prompt_design() == design


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apt(tokens=0)", "apt: tokens must be at least 1, not 0"),
        ("apt(tokens=2.5)", "apt: tokens must be a whole number of at least 0, not 2.5"),
        ("apt(position=left)", "position must be end or middle or front, not left"),
        ("apt(init=3)", "apt: init must be words joined by _, not 3"),
        ("apt(tokens=16,init=a_photo)", "apt: init says .* how many context vectors there are: leave tokens out"),
        ("apt(tokens=2.5)", "apt: tokens must be a whole number"),
        ("apt(ascent=0.02)", "apt: ascent is of attack=perturbed"),
        ("apt(attack=constant,ascent=0.1)", "apt: ascent is of attack=perturbed"),
        ("fap(depth=0)", "fap: depth must be at least 1"),
    ],
)
def test_mistakes_in_options(text: str, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        parse_method(text)


def test_published_settings_of_prompts() -> None:
    """As in TreeLLi/APT, vit_b32_ep50.yaml and APT.sh, and lionel-w2/FAP."""
    apt, fap = APT.presets["paper"], FAP.presets["paper"]
    of = ("optimizer", "lr", "epochs", "batch_size", "eps", "attack_steps")
    assert [apt[name] for name in of] == ["sgd", 0.002, 50, 32, 4, 3]
    assert apt["step_size"] == pytest.approx(4 * 2 / 3)
    assert [fap[name] for name in of] == ["sgd", 0.0035, 10, 4, 1, 2]
    assert (FAP().tokens, FAP().depth, FAP().lam, APT().prompt_design().tokens) == (2, 9, 1.5, 16)
