"""TRADES: right on clean images, and the same answer on adversarial ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, cross_entropy, kl_divergence


@dataclass(frozen=True)
class TRADES(Method):
    """TRADES (Zhang et al. 2019) with CLIP's fixed class texts as the classifier.

    L = mean_i CE(l(x_i), y_i) + beta mean_i KL(softmax l(x_i) || softmax l(x'_i)), l = s cos(z, t), with gradients
    through both sides of the KL. The attack maximises that KL, which has no gradient at the clean image: it needs a
    random start.

    Args:
        beta: weight of the KL; 6 is the paper's for CIFAR-10. It trained no CLIP model, so there is no published
            setting to preset.
    """

    beta: float = 6.0

    name: ClassVar[str] = "trades"
    needs_random_start: ClassVar[bool] = True
    summary: ClassVar[str] = "clean cross-entropy, and KL from clean to adversarial predictions (Zhang et al. 2019)"
    citation: ClassVar[str] = (
        "Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019, arXiv 1901.08573"
    )

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels, clean and adversarial images."""
        return frozenset({"labels", "clean", "adversarial"})

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) KL from clean to adversarial predictions."""
        assert batch.clean is not None
        return kl_divergence(batch.logits(batch.clean), batch.logits(adversarial))

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce` of clean images and `kl`."""
        assert batch.clean is not None
        assert batch.adversarial is not None
        return {
            "ce": cross_entropy(batch.logits(batch.clean), batch.labels).mean(),
            "kl": self.beta * self.attack_objective(batch.adversarial, batch).mean(),
        }
