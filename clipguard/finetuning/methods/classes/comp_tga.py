"""Comp-TGA: TGA-ZSR with attention that leaves out what the negated text sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Need
from clipguard.finetuning.methods.classes.attention import attention_map, true_text
from clipguard.finetuning.methods.classes.tga_zsr import TGAZSR


@dataclass(frozen=True)
class CompTGA(TGAZSR):
    """Complementary text-guided attention (Comp-TGA, Yu et al. 2026).

    As `tga-zsr`, with A = A_pos (1 - A_neg) patch by patch: A_pos is the map of the class's text, A_neg that of "This
    is not a photo of a NAME", whatever the prompts of the run, both from 0 to 1. The product is not stretched to that
    range again. With both weights 0 it is TeCoA.

    Args:
        alpha: weight of the distance on adversarial images.
        beta: weight of the distance on clean images.

    Preset "paper": that of TGA-ZSR, whose repository it is in.
    """

    alpha: float = 0.10
    beta: float = 0.07

    name: ClassVar[str] = "comp-tga"
    summary: ClassVar[str] = "TGA-ZSR without what the negated text sees; ViTs (Yu et al. 2026)"
    citation: ClassVar[str] = (
        "Yu et al., Complementary Text-Guided Attention for Zero-Shot Adversarial Robustness, 2026, arXiv 2603.18598"
    )

    def needs(self, progress: float) -> frozenset[Need]:
        """As TGA-ZSR, and the negated texts where there are maps."""
        needs = super().needs(progress)
        return needs | {"negative_text"} if self.alpha or self.beta else needs

    def maps(self, patches: Tensor | None, batch: Batch) -> Tensor:
        """(B, 1, N): A_pos (1 - A_neg)."""
        assert patches is not None
        assert batch.negative_text is not None
        negative = attention_map(patches, true_text(batch.negative_text.unsqueeze(1), batch))
        return super().maps(patches, batch) * (1 - negative)
