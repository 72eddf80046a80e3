"""FAB-T, step by step: the smallest adversarial image on its way is the reference's."""

from __future__ import annotations

import pytest
import torch
from attack_models import small_conv, uniform
from pyautoattack.fab_pt import FABAttack_PT

from clipguard.attacks.losses import margin
from clipguard.attacks.methods.fab import FABTargeted
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import NORMS, ThreatModel
from clipguard.core.eps import Norm


def begin(
    attack: FABTargeted, images: torch.Tensor, logits: torch.Tensor, eps: float, norm: Norm, run: int
) -> AttackState:
    n, order = len(images), logits.argsort(dim=1, descending=True)
    state = AttackState(
        item=torch.arange(n), x0=images, label=order[:, 0], ranking=order[:, 1:], step=torch.zeros(n).long()
    )
    state["run"], state["eps"] = torch.full((n,), run), torch.full((n,), eps)
    state["target"] = attack.choose_target(state)
    attack.start(state, ThreatModel(norm), PerImageRandom(0, attack.name, range(n), [run] * n, images.device))
    return state


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("target", [2, 4])
def test_the_smallest_image_found_is_the_reference_s(target: int, norm: Norm) -> None:
    """With eps zero, so that no point on the way ends the search."""
    model, attack, threat = small_conv(), FABTargeted(iterations=25), ThreatModel(norm)
    images = uniform(8, 3, 10, 10)
    logits = model(images).detach()
    state = begin(attack, images, logits, 0.0, norm, run=target - 2)
    best = torch.full((8,), torch.inf)
    evaluations = 0
    while not attack.finished(state).all():
        x = attack.query(state).requires_grad_()
        z = model(x)
        loss = attack.loss(z, state["label"], state["target"])
        grad = torch.autograd.grad(loss.sum(), x)[0] * attack.wants_gradient(state)[:, None, None, None]
        x = x.detach()
        # Points pulled back towards the clean image are looked at here, which the reference does not do.
        wrong = (margin(z.detach(), state["label"]) < 0) & ~state["settled"]
        best = torch.where(wrong, torch.minimum(best, threat.distance(x, images)), best)
        attack.update(state, threat, x, z.detach(), loss.detach(), grad)
        state["step"] = state["step"] + 1
        evaluations += 1
    theirs = FABAttack_PT(model, norm={"linf": "Linf", "l2": "L2"}[norm], n_iter=25, eps=1.0, device="cpu")
    theirs.target_class = target
    found = theirs.attack_single_run(images, state["label"], is_targeted=True)
    expected = threat.distance(found, images)
    assert (expected > 0).all()
    assert best.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert 26 <= evaluations <= 51


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_half_way_out(norm: Norm) -> None:
    attack, images = FABTargeted(restarts=2, targets=3), 0.5 + 0.1 * uniform(4, 3, 6, 6)
    logits = small_conv()(images).detach()
    assert torch.equal(begin(attack, images, logits, 0.2, norm, run=2)["x"], images)
    restarted = begin(attack, images, logits, 0.2, norm, run=3)
    assert torch.allclose(ThreatModel(norm).distance(restarted["x"], images), torch.tensor(0.1), atol=1e-5)
    assert torch.equal(restarted["target"], restarted["ranking"][:, 0])
