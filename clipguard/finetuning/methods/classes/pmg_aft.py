"""PMG-AFT: TeCoA guided by the predictions of the original model and by the model's own on clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, cross_entropy, kl_divergence
from clipguard.finetuning.methods.classes.tecoa import TECOA_SETTINGS


@dataclass(frozen=True)
class PMGAFT(Method):
    """Pre-trained model guided adversarial fine-tuning (Wang et al. 2024).

    L = mean_i CE(l'_i, y_i) + lam_original KL(p0'_i || p'_i) + lam_clean KL(p_i || p'_i): l' and p' are logits and
    softmax of adversarial images, p the softmax of clean ones, p0' that of adversarial ones under the frozen original
    tower. The text is frozen. The attack maximises the cross-entropy.

    Args:
        variant: "paper": logits have CLIP's scale, KL terms are means over the batch, and p is a fixed target (as AGFT
            reads the paper). "repository": what the published code computes: it normalises the scaled text again, so
            logits are bare cosines everywhere, attack included; KL terms are sums over the batch (so their weight grows
            with the batch that a loss sees); and gradients flow through p.
        lam_original, lam_clean: 1 in paper and code.

    Preset "paper": the authors' command line (ViT-B/32, Tiny-ImageNet). Their code normalises images with ImageNet's
    mean and std; here the model's own are used.
    """

    variant: Literal["paper", "repository"] = "paper"
    lam_original: float = 1.0
    lam_clean: float = 1.0

    name: ClassVar[str] = "pmg-aft"
    summary: ClassVar[str] = "TeCoA with KL to the original's and to clean predictions (Wang et al. 2024)"
    citation: ClassVar[str] = (
        "Wang et al., Pre-trained Model Guided Fine-Tuning for Zero-Shot Adversarial Robustness, CVPR 2024, "
        "arXiv 2401.04350"
    )
    presets: ClassVar[Presets] = {"paper": {**TECOA_SETTINGS, "lr": 5e-5}}

    def divisible(self) -> bool:
        """In the paper's variant; the repository's sums over the batch."""
        return self.variant == "paper"

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels and adversarial images; for each KL term that has a weight, its teacher."""
        needs: set[Need] = {"labels", "adversarial"}
        if self.lam_original:
            needs.add("original_adversarial")
        if self.lam_clean:
            needs.add("clean")
        return frozenset(needs)

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) cross-entropy, on logits of the variant's scale."""
        return cross_entropy(self._logits(adversarial, batch), batch.labels)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`, `kl_original` and `kl_clean`; a term without weight is left out."""
        assert batch.adversarial is not None
        student = self._logits(batch.adversarial, batch)
        terms = {"ce": cross_entropy(student, batch.labels).mean()}
        if self.lam_original:
            assert batch.original_adversarial is not None
            terms["kl_original"] = self.lam_original * self._kl(
                self._logits(batch.original_adversarial, batch), student
            )
        if self.lam_clean:
            assert batch.clean is not None
            teacher = self._logits(batch.clean, batch)
            teacher = teacher if self.variant == "repository" else teacher.detach()
            terms["kl_clean"] = self.lam_clean * self._kl(teacher, student)
        return terms

    def _logits(self, embeddings: Tensor, batch: Batch) -> Tensor:
        logits = batch.logits(embeddings)
        return logits / batch.logit_scale if self.variant == "repository" else logits

    def _kl(self, teacher: Tensor, student: Tensor) -> Tensor:
        divergence = kl_divergence(teacher, student)
        return divergence.sum() if self.variant == "repository" else divergence.mean()
