"""TGA-ZSR: adversarial images are recognised, and looked at where the original model looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, cross_entropy
from clipguard.finetuning.methods.classes.attention import attention_map, map_distance, true_text
from clipguard.finetuning.methods.classes.tecoa import TECOA_SETTINGS

TGA_SETTINGS: Mapping[str, Any] = {**TECOA_SETTINGS, "lr": 1e-4, "batch_size": 128}


@dataclass(frozen=True)
class TGAZSR(Method):
    """Text-guided attention for zero-shot robustness (TGA-ZSR, Yu et al. 2024).

    L = mean_i [CE(s cos(z'_i, t), y_i) + alpha ||A(x'_i; f) - A(x_i; f0)|| + beta ||A(x_i; f) - A(x_i; f0)||]: A is
    the map of cosines between an image's patch tokens and the text of its class, from 0 to 1 (`attention_map`), of the
    tower in training f on adversarial and clean images and of the frozen original f0; distances are l2, on 224 x 224
    pixels (`map_distance`). The attack maximises the cross-entropy. With both weights 0 it is TeCoA.

    The published code does not run, and its maps are not normalised as the paper says: patches are of unit length here
    (`attention_map` has the rest), maps are compared patch by patch, and the frozen copy has no gradient. Vision
    transformers alone have patches.

    Args:
        alpha: weight of the attention refinement, on adversarial images.
        beta: weight of the attention-based model constraint, on clean images.

    Preset "paper": the authors' command line (ViT-B/32, Tiny-ImageNet).
    """

    alpha: float = 0.08
    beta: float = 0.05

    name: ClassVar[str] = "tga-zsr"
    summary: ClassVar[str] = "TeCoA that keeps where the original looks, by text; ViTs (Yu et al. 2024)"
    citation: ClassVar[str] = (
        "Yu et al., Text-Guided Attention is All You Need for Zero-Shot Robustness in Vision-Language Models, "
        "NeurIPS 2024, arXiv 2410.21802"
    )
    presets: ClassVar[Presets] = {"paper": TGA_SETTINGS}

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels and adversarial images, and patches for each distance that has a weight."""
        needs: set[Need] = {"labels", "adversarial"}
        if self.alpha:
            needs |= {"adversarial_patches", "original_clean_patches"}
        if self.beta:
            needs |= {"clean_patches", "original_clean_patches"}
        return frozenset(needs)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`, and `refinement` and `constraint` where they have a weight."""
        assert batch.adversarial is not None
        terms = {"ce": cross_entropy(batch.logits(batch.adversarial), batch.labels).mean()}
        return terms | self.attention_terms(batch)

    def attention_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The distances, each with its weight."""
        weights = {"refinement": self.alpha, "constraint": self.beta}
        seen = {"refinement": batch.adversarial_patches, "constraint": batch.clean_patches}
        return {
            name: weight * map_distance(self.maps(seen[name], batch), self.target(batch)).mean()
            for name, weight in weights.items()
            if weight
        }

    def target(self, batch: Batch) -> Tensor:
        """A(x; f0), a constant: where the original model looks, by its own text also where `train=all` tunes that."""
        return self.maps(batch.original_clean_patches, batch.with_original_text()).detach()

    def maps(self, patches: Tensor | None, batch: Batch) -> Tensor:
        """(B, T, N) of patch tokens, one map for each of the T texts of the image's class; here there is one text."""
        assert patches is not None
        return attention_map(patches, true_text(batch.text.unsqueeze(1), batch))
