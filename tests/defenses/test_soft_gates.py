"""The objective of attacks that also satisfy a gate."""

from __future__ import annotations

import math

import pytest
import torch
from defended_models import LinearClip, images
from torch import Tensor

from clipguard.defenses.base import Purifier, View
from clipguard.defenses.classifiers import Undefended
from clipguard.defenses.gradients import soft_gate
from clipguard.defenses.methods.csr import CSR
from clipguard.defenses.methods.doc import DOC
from clipguard.defenses.methods.ttc import TTC

GATED = [CSR(threshold=0.9), DOC(threshold=0.01), TTC(threshold=0.05)]


def test_the_sides_are_mixed_as_probabilities() -> None:
    passing, moved = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9), 0.0]])  # 0.5, 0.5 and 0.9, 0.1
    half = soft_gate(passing, moved, torch.zeros(1)).exp()
    torch.testing.assert_close(half, torch.tensor([[0.7, 0.3]]))
    quarter = soft_gate(passing, moved, torch.tensor([-math.log(3)])).exp()
    torch.testing.assert_close(quarter, torch.tensor([[0.8, 0.2]]))


def test_the_gradient_leads_to_the_side_that_is_wrong() -> None:
    wrong, right = torch.tensor([[-5.0, 5.0]]), torch.tensor([[5.0, -5.0]])
    for passing, moved, sign in ((wrong, right, 1), (right, wrong, -1)):
        evidence = torch.zeros(1, requires_grad=True)
        loss = -soft_gate(passing, moved, evidence)[0, 0]  # what an attack on class 0 raises
        assert sign * torch.autograd.grad(loss, evidence)[0].item() > 0.4


@pytest.mark.parametrize("defense", GATED, ids=lambda defense: defense.name)
def test_evidence_is_for_passing_where_the_gate_lets_pass(defense: Purifier) -> None:
    """Between thresholds at which all pass and all are flagged, the objective goes from one side to the other."""
    model, x, view = LinearClip(curved=True), images(3), View()
    classifier = Undefended(model)
    kind = type(defense)

    def relaxed(threshold: float) -> Tensor:
        return kind(threshold=threshold).relaxed("soft gate", classifier, x, view).softmax(dim=1)

    passing, flagged = (1e-6, 1e6) if kind is not CSR else (-1.0, 1 - 1e-9)
    at = [kind(threshold=t).flagged(classifier, x, view).tolist() for t in (passing, flagged)]
    assert at == [[False] * 3, [True] * 3]
    if kind is not DOC:  # whose own gate is soft
        own = [kind(threshold=t).logits(classifier, x, view).softmax(dim=1) for t in (passing, flagged)]
        torch.testing.assert_close(relaxed(passing), own[0], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(relaxed(flagged), own[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(relaxed(passing), relaxed(flagged), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("defense", GATED, ids=lambda defense: defense.name)
def test_the_gradient_is_that_of_both_sides_and_of_the_gate(defense: Purifier) -> None:
    """It differs from that of the mean over both sides, and is finite, as attacks need it to be."""
    classifier, gradients = Undefended(LinearClip(curved=True)), []
    for name in defense.relaxations():
        leaf = images(3).requires_grad_()
        logits = defense.relaxed(name, classifier, leaf, View())
        gradients.append(torch.autograd.grad(logits.log_softmax(dim=1)[:, 0].sum(), leaf)[0])
    assert defense.relaxations() == ("both branches", "soft gate")
    assert torch.isfinite(gradients[1]).all()
    assert gradients[1].flatten(1).norm(dim=1).min() > 0
    assert not torch.allclose(gradients[0], gradients[1])


def test_a_threshold_at_its_end_has_no_gate_to_satisfy() -> None:
    for defense in (TTC(threshold=0), DOC(threshold=0), CSR(threshold=1)):
        assert defense.relaxations() == ("both branches",)
