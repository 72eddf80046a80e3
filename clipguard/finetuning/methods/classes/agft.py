"""AGFT: adversarial images are taught the original model's soft answers, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method, Need, Presets
from clipguard.finetuning.methods.classes.tecoa import TECOA_SETTINGS


@dataclass(frozen=True)
class AGFT(Method):
    """Alignment-guided fine-tuning (AGFT, Cui et al. 2026).

    L = mean_i CE(q_i, softmax(scale s cos(z'_i, t))), q_i = softmax(ratio scale s cos(z0_i, t0)), with the
    cross-entropy of distributions, CE(q, p) = - sum_k q_k log p_k. The attack maximises the same. Needs class names,
    but no labels. The ratio below 1 softens the teacher: the paper's distribution consistency calibration. As the ratio
    grows, q is the class that the original model sees, and the loss is TeCoA's on these.

    Args:
        scale: factor on the model's logit scale s, in training alone. The authors train with 180 where CLIP has 100,
            and evaluate with 100; as a factor it holds for models with another s.
        ratio: `scale_ratio` of the authors' code, 0.4 in their command.

    Preset "paper": that command (ViT-B/32, ImageNet; 2 GPUs of 128 images each, with mixed precision).
    """

    scale: float = 1.8
    ratio: float = 0.4

    name: ClassVar[str] = "agft"
    summary: ClassVar[str] = "the original's softened answers as targets; class names, no labels (Cui et al. 2026)"
    citation: ClassVar[str] = (
        "Cui et al., AGFT: Alignment-Guided Fine-Tuning for Zero-Shot Adversarial Robustness of Vision-Language "
        "Models, CVPR 2026, arXiv 2603.29410"
    )
    presets: ClassVar[Presets] = {"paper": {**TECOA_SETTINGS, "lr": 4e-4, "templates": "This is a photo of a {}."}}

    def __post_init__(self) -> None:
        """Raises FinetuneError for a scale of 0."""
        if self.scale <= 0:
            raise FinetuneError("agft: scale must be above 0.")

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Class names, adversarial images and original clean embeddings."""
        return frozenset({"classes", "adversarial", "original_clean"})

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) cross-entropy of the softened answers of the original model and those to adversarial images."""
        assert batch.original_clean is not None
        cosines = F.normalize(batch.original_clean, dim=-1) @ batch.original_text.T
        teacher = torch.softmax(self.ratio * self.scale * batch.logit_scale * cosines, dim=1)
        return -(teacher * torch.log_softmax(self.scale * batch.logits(adversarial), dim=1)).sum(dim=1)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`soft_ce`."""
        assert batch.adversarial is not None
        return {"soft_ce": self.attack_objective(batch.adversarial, batch).mean()}
