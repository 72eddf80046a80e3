"""Cosine consistency: right on adversarial images, which must stay near the clean ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from clipguard.finetuning.methods.base import Batch, Method, Need, cross_entropy


@dataclass(frozen=True)
class CosineConsistency(Method):
    """L = mean_i CE(s cos(z'_i, t), y_i) + beta mean_i (1 - cos(z_i, z'_i)); the attack maximises the cross-entropy."""

    beta: float = 1.0

    name: ClassVar[str] = "cosine-consistency"
    summary: ClassVar[str] = "adversarial cross-entropy, and cosine to the clean embedding (Li et al. 2024)"
    citation: ClassVar[str] = "an example of a method, after the consistency term of Li et al. 2024"

    def needs(self, progress: float) -> frozenset[Need]:
        return frozenset({"labels", "clean", "adversarial"})

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        cosine = F.cosine_similarity(batch.clean, batch.adversarial)
        return {
            "ce": cross_entropy(batch.logits(batch.adversarial), batch.labels).mean(),
            "consistency": self.beta * (1 - cosine).mean(),
        }
