"""TeCoA: adversarial fine-tuning of the image tower on cross-entropy with fixed class texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, cross_entropy
from clipguard.finetuning.methods.embeddings.fare import ROBUSTVLM_SETTINGS

# Of TeCoA's code, and of the methods that grew out of it: ViT-B/32, two weak attack steps.
TECOA_SETTINGS: Mapping[str, Any] = {
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
    """Text-guided contrastive adversarial training (TeCoA, Mao et al. 2023).

    L = mean_i CE(s cos(z'_i, t), y_i), with z' of adversarial images, t the fixed texts and s CLIP's logit scale; the
    attack maximises the same cross-entropy.

    Presets: "paper" as in the authors' code for ViT-B/32 on ImageNet (learning rate 1e-5 as AGFT's code reports it;
    the authors' own command line names none); "robustvlm" as FARE's authors trained their TeCoA models
    (ViT-L/14, ImageNet).
    """

    name: ClassVar[str] = "tecoa"
    summary: ClassVar[str] = "cross-entropy on adversarial images, text frozen (Mao et al. 2023)"
    citation: ClassVar[str] = (
        "Mao et al., Understanding Zero-Shot Adversarial Robustness for Large-Scale Models, ICLR 2023, arXiv 2212.07016"
    )
    presets: ClassVar[Presets] = {"paper": {**TECOA_SETTINGS, "lr": 1e-5}, "robustvlm": ROBUSTVLM_SETTINGS}

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels and adversarial images."""
        return frozenset({"labels", "adversarial"})

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`: cross-entropy of adversarial images."""
        assert batch.adversarial is not None
        return {"ce": cross_entropy(batch.logits(batch.adversarial), batch.labels).mean()}
