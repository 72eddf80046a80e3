"""SAFT: TGA-ZSR with several texts a class, each of which is attacked and learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from clipguard.finetuning.methods.base import Batch, Need, Presets
from clipguard.finetuning.methods.classes.attention import attention_map, true_text
from clipguard.finetuning.methods.classes.tga_zsr import TGA_SETTINGS, TGAZSR


@dataclass(frozen=True)
class SAFT(TGAZSR):
    """Semantic-aware adversarial fine-tuning (SAFT, Zhang et al. 2026).

    L = mean_ij [CE(s cos(z'_i, t_j), y_i) + alpha ||A_j(x'_i; f) - A_j(x_i; f0)|| + beta ||A_j(x_i; f) -
    A_j(x_i; f0)||], mean over images i and the T texts t_j of each class; A_j is the map of `tga-zsr` with the text
    t_j. The attack maximises the first term (the semantic-ensemble attack). With one prompt it is TGA-ZSR; with weights
    0 it needs no vision transformer, and with one prompt and weights 0 it is TeCoA.

    The authors' texts are five descriptions of each class, which a language model wrote and which were chosen by
    similarity. clipguard has none: the texts here are the prompts of the run, `templates`.

    Args:
        alpha: weight of the distances on adversarial images.
        beta: weight of the distances on clean images.

    Preset "paper": the authors' optimiser and attack (ViT-B/32, Tiny-ImageNet), with the data set's ensemble of prompts
    where they have descriptions.
    """

    name: ClassVar[str] = "saft"
    summary: ClassVar[str] = "TGA-ZSR with every prompt attacked and learned by itself; ViTs (Zhang et al. 2026)"
    citation: ClassVar[str] = "Zhang et al., Semantic-aware Adversarial Fine-tuning for CLIP, 2026, arXiv 2602.12461"
    presets: ClassVar[Presets] = {"paper": {**TGA_SETTINGS, "templates": "ensemble"}}

    def needs(self, progress: float) -> frozenset[Need]:
        """As TGA-ZSR, and the texts of each prompt."""
        return super().needs(progress) | {"class_prompts"}

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) cross-entropy, mean over the prompts."""
        assert batch.class_prompts is not None
        assert batch.labels is not None
        cosines = F.normalize(adversarial, dim=-1) @ batch.class_prompts.flatten(0, 1).T  # (B, C * T)
        logits = batch.logit_scale * cosines.view(len(cosines), *batch.class_prompts.shape[:2])
        n = logits.shape[2]
        labels = batch.labels.unsqueeze(1).expand(-1, n)
        return F.cross_entropy(logits, labels, reduction="none").mean(dim=1)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`, and `refinement` and `constraint` where they have a weight."""
        assert batch.adversarial is not None
        return {"ce": self.attack_objective(batch.adversarial, batch).mean()} | self.attention_terms(batch)

    def maps(self, patches: Tensor | None, batch: Batch) -> Tensor:
        """(B, T, N) of patch tokens, one map for each prompt."""
        assert patches is not None
        assert batch.class_prompts is not None
        return attention_map(patches, true_text(batch.class_prompts, batch))
