"""AdvFLYP: adversarial images stay with their captions, as in CLIP's own training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, kl_divergence
from clipguard.finetuning.methods.captions.contrastive import Duplicates, caption_logits, info_nce
from clipguard.finetuning.methods.classes.tecoa import TECOA_SETTINGS

SMOOTH = 1e-3  # added to a distance in squares


@dataclass(frozen=True)
class AdvFLYP(Method):
    """Adversarial fine-tuning like the pre-training (AdvFLYP, Xing et al. 2026).

    L = InfoNCE(z', c) + lam_feature mean_i (||n(z'_i) - n(z0'_i)|| + ||n(z'_i) - n(z_i)||)
        + lam_logit mean_i (KL(p'_i || p0'_i) + KL(p'_i || p_i)):

    z', z of adversarial and clean images, z0' of the adversarial ones under the frozen original tower; n gives unit
    length, norms are not squared; p is the softmax of an image's logits over the captions c of its batch. InfoNCE is
    the mean of both directions. The attack maximises it. The text tower is frozen, as in the published code;
    `train=all` trains it, too. Nothing is detached: the code does not, either. The logarithms of the KL are those of
    log-softmax; the code takes them of a softmax in half precision, where they can be infinite. Distances are smooth
    below 1e-3: at the first step the towers are the same, and a norm's gradient would be the direction of rounding.

    Args:
        lam_feature, lam_logit: of the regularisers, which the code switches on by name and, with the default of its
            command line, by accident. Both 0: plain adversarial contrastive training, and nothing of them is computed.
        duplicates: of images with the same caption in a batch; see `pair_targets`. The code has "negative".

    Preset "paper": the authors' commands (ViT-B/32, a million pairs of LAION); momentum and warm-up are those of
    TeCoA's code, which theirs grew out of. It stops early, by the accuracy on images that were set apart; here the best
    checkpoint of 100 epochs is chosen.
    """

    lam_feature: float = 1.0
    lam_logit: float = 1.0
    duplicates: Duplicates = "positive"

    name: ClassVar[str] = "advflyp"
    summary: ClassVar[str] = "contrastive on adversarial images and captions, two regularisers (Xing et al. 2026)"
    citation: ClassVar[str] = (
        "Xing et al., Finetune Like You Pretrain: Boosting Zero-shot Adversarial Robustness in Vision-language Models, "
        "CVPR Findings 2026, arXiv 2604.11576"
    )
    presets: ClassVar[Presets] = {
        "paper": {**TECOA_SETTINGS, "lr": 1e-4, "epochs": 100, "templates": "This is a photo of a {}."}
    }

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Captions and adversarial images; for the regularisers clean ones and the original tower, too."""
        regulariser: set[Need] = {"clean", "original_adversarial"} if self.lam_feature or self.lam_logit else set()
        return frozenset({"captions", "adversarial", *regulariser})

    def images_meet(self) -> bool:
        """Yes."""
        return True

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) InfoNCE."""
        return info_nce(adversarial, batch, self.duplicates)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`contrastive`, and with weight `feature` and `logit`."""
        adversarial = batch.adversarial
        assert adversarial is not None
        terms = {"contrastive": info_nce(adversarial, batch, self.duplicates).mean()}
        if self.lam_feature or self.lam_logit:
            assert batch.original_adversarial is not None
            assert batch.clean is not None
            references = (batch.original_adversarial, batch.clean)
            if self.lam_feature:
                distances = torch.stack([_distance(adversarial, other) for other in references])
                terms["feature"] = self.lam_feature * distances.sum()
            if self.lam_logit:
                divergences = torch.stack([_kl(adversarial, other, batch) for other in references])
                terms["logit"] = self.lam_logit * divergences.sum()
        return terms


def _distance(adversarial: Tensor, other: Tensor) -> Tensor:
    """Mean distance of unit rows, smooth where it is 0."""
    difference = F.normalize(adversarial, dim=-1) - F.normalize(other, dim=-1)
    return (difference.square().sum(dim=-1) + SMOOTH**2).sqrt().mean()


def _kl(adversarial: Tensor, other: Tensor, batch: Batch) -> Tensor:
    """Mean KL(p' || p of the others) over the captions of the batch."""
    assert batch.captions is not None
    teacher, student = (caption_logits(rows, batch.captions, batch.logit_scale) for rows in (adversarial, other))
    return kl_divergence(teacher, student).mean()
