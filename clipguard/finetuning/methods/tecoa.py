"""TeCoA: adversarial fine-tuning of the image tower on cross-entropy with fixed class texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, cross_entropy
from clipguard.finetuning.methods.fare import ROBUSTVLM

# Settings that TeCoA and the methods that grew out of its code share: ViT-B/32, two weak attack steps.
LINEAGE: Mapping[str, Any] = {
    "train": "visual",
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "warmup_steps": 1000,
    "epochs": 10,
    "batch_size": 256,
    "norm": "linf",
    "eps": 1.0,
    "attack_steps": 2,
    "step_size": 1.0,
    "templates": "This is a photo of a {}",
    "augment": "none",
}


@dataclass(frozen=True)
class TeCoA(Method):
    """Text-guided contrastive adversarial training (Mao et al., ICLR 2023, arXiv 2212.07016).

    L = mean_i CE(s cos(z'_i, t), y_i), with z' of adversarial images, t the fixed texts and s CLIP's logit scale; the
    attack maximises the same cross-entropy.

    Presets: "paper" as in the authors' code for ViT-B/32 on ImageNet (learning rate 1e-5 as AGFT's code reports it;
    the authors' own command line names none); "robustvlm" as FARE's authors trained their TeCoA models (arXiv
    2402.12336; ViT-L/14, ImageNet).
    """

    name: ClassVar[str] = "tecoa"
    summary: ClassVar[str] = "cross-entropy on adversarial images, text frozen (Mao et al. 2023)"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {**LINEAGE, "lr": 1e-5}, "robustvlm": ROBUSTVLM}

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels and adversarial images."""
        return frozenset({"labels", "adversarial"})

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`: cross-entropy of adversarial images."""
        assert batch.adversarial is not None
        return {"ce": cross_entropy(batch.logits(batch.adversarial), batch.labels).mean()}
