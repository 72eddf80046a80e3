"""Sim-CLIP: FARE's idea with cosine similarity in place of squared distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from clipguard.finetuning.methods.base import Batch, Method, Need, Presets
from clipguard.finetuning.methods.embeddings.fare import ROBUSTVLM_SETTINGS, squared_distance


@dataclass(frozen=True)
class SimCLIP(Method):
    """Siamese adversarial fine-tuning (Sim-CLIP, Hossain & Imteaj 2024).

    L = 1/2 mean_i (1 - cos(z'_i, sg c_i)) + 1/2 mean_i (1 - cos(c_i, sg z'_i)), sg = stop-gradient, z' of adversarial
    images; the constant 1, ours, makes 0 the minimum. The attack maximises ||z' - c||^2, not normalised.

    Args:
        clean: what c is. "original" (the authors' code): the clean embedding of the frozen original tower. Then the
            second half has no gradient at all, and is left out here: what remains is half of 1 - cos(z', c), with
            nothing siamese about it. "tuned": the clean embedding of the tower in training, as the equation suggests;
            both halves then count, and nothing ties the tower to its origin any more.

    Preset "paper": the authors' repository (ViT-L/14 on ImageNet), with eps 4/255.
    """

    clean: Literal["original", "tuned"] = "original"

    name: ClassVar[str] = "sim-clip"
    summary: ClassVar[str] = "cosine to the clean embedding under attack; no labels (Hossain & Imteaj 2024)"
    citation: ClassVar[str] = (
        "Hossain & Imteaj, Sim-CLIP: Unsupervised Siamese Adversarial Fine-Tuning for Robust and Semantically-Rich "
        "Vision-Language Models, 2024, arXiv 2407.14971"
    )
    presets: ClassVar[Presets] = {
        "paper": {**ROBUSTVLM_SETTINGS, "lr": 1e-3, "weight_decay": 1e-5, "steps": 10_000, "batch_size": 64}
    }

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Adversarial images and clean embeddings, of the original tower or of the one in training."""
        return frozenset({"adversarial", "original_clean" if self.clean == "original" else "clean"})

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) squared distance from the clean embedding."""
        return squared_distance(adversarial, self._target(batch))

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`adversarial`, pulled to the clean embedding; with clean="tuned" also `clean`, pulled to the adversarial."""
        adversarial, clean = batch.adversarial, self._target(batch)
        assert adversarial is not None
        terms = {"adversarial": 0.5 * (1 - F.cosine_similarity(adversarial, clean.detach()).mean())}
        if self.clean == "tuned":
            terms["clean"] = 0.5 * (1 - F.cosine_similarity(clean, adversarial.detach()).mean())
        return terms

    def _target(self, batch: Batch) -> Tensor:
        target = batch.original_clean if self.clean == "original" else batch.clean
        assert target is not None
        return target
