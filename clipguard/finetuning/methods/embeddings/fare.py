"""FARE: adversarial fine-tuning of the image tower towards its own original embeddings, without labels or text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method, Need, Presets

# Settings of the RobustVLM repository: ViT-L/14 on ImageNet, two epochs.
ROBUSTVLM_SETTINGS: Mapping[str, Any] = {
    "train": "visual",
    "optimizer": "adamw",
    "lr": 1e-5,
    "weight_decay": 1e-4,
    "warmup_steps": 1400,
    "steps": 20_000,
    "batch_size": 128,
    "norm": "linf",
    "eps": 4.0,
    "attack_steps": 10,
    "step_size": 1.0,
    "templates": "This is a photo of a {}",
    "augment": "none",
}


@dataclass(frozen=True)
class FARE(Method):
    """Unsupervised adversarial fine-tuning (FARE, Schlarmann et al. 2024).

    L = (1 - w) mean_i ||z'_i - z0_i||^2 + w mean_i ||z_i - z0_i||^2, with z' and z of adversarial and clean images, z0
    of the clean image under the frozen original tower, none of them normalised, summed over dimensions. The attack
    maximises ||z' - z0||^2.

    Args:
        clean_weight: w, in [0,1]. The paper has 0; the option is one of its code's.

    Preset "paper": the repository's settings for ViT-L/14 on ImageNet, with eps 4/255; FARE-2 is the same with eps 2.
    """

    clean_weight: float = 0.0

    name: ClassVar[str] = "fare"
    summary: ClassVar[str] = "keep the original clean embedding under attack; no labels (Schlarmann et al. 2024)"
    citation: ClassVar[str] = (
        "Schlarmann et al., Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust Large "
        "Vision-Language Models, ICML 2024, arXiv 2402.12336"
    )
    presets: ClassVar[Presets] = {"paper": ROBUSTVLM_SETTINGS}

    def __post_init__(self) -> None:
        """Raises FinetuneError for a weight outside [0,1]."""
        if not 0 <= self.clean_weight <= 1:
            raise FinetuneError(f"fare: clean_weight is a share, from 0 to 1, not {self.clean_weight}.")

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Adversarial images and original clean embeddings; clean ones if they have a weight."""
        needs: set[Need] = {"adversarial", "original_clean"}
        return frozenset(needs | {"clean"} if self.clean_weight else needs)

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) squared distance from the original clean embedding."""
        return squared_distance(adversarial, batch.original_clean)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`distance`, and `clean` if it has a weight."""
        target = batch.original_clean
        terms = {"distance": (1 - self.clean_weight) * squared_distance(batch.adversarial, target).mean()}
        if self.clean_weight:
            terms["clean"] = self.clean_weight * squared_distance(batch.clean, target).mean()
        return terms


def squared_distance(embeddings: Tensor | None, target: Tensor | None) -> Tensor:
    """(B,) squared Euclidean distances of rows (B, D)."""
    assert embeddings is not None
    assert target is not None
    return (embeddings - target).square().sum(dim=1)
