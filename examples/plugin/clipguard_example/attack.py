"""MI-FGSM: signed steps along a running mean of normalised gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipguard.attacks.methods.pgd import PGD
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import ThreatModel, per_row


@dataclass(frozen=True)
class MIFGSM(PGD):
    """g <- g + grad / ||grad||_1, x <- P(x + eps / iterations * steepest(g)), from the clean image."""

    name: ClassVar[str] = "mi-fgsm"
    summary: ClassVar[str] = "signed steps along a running mean of gradients (Dong et al. 2018)"
    citation: ClassVar[str] = "Dong et al. Boosting adversarial attacks with momentum. CVPR 2018. arXiv:1710.06081"
    steps_in_name: ClassVar[bool] = False
    fixed: ClassVar[tuple[str, ...]] = ("restarts", "step_size", "random_start")
    random_start: bool = False

    def start(self, state: AttackState, threat: ThreatModel, random: PerImageRandom) -> None:
        super().start(state, threat, random)
        state["momentum"] = torch.zeros_like(state["x0"])

    def update(
        self, state: AttackState, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        size = grad.abs().sum(dim=(1, 2, 3)).clamp_min(1e-12)
        state["momentum"] = state["momentum"] + grad / per_row(size, grad)
        moved = x + per_row(state["eps"] / self.iterations, x) * threat.steepest(state["momentum"])
        state["x"] = threat.project(moved, state["x0"], state["eps"])
