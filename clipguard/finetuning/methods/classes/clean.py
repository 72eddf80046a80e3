"""Ordinary fine-tuning: what a model gains and loses without any adversarial image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, cross_entropy


@dataclass(frozen=True)
class Clean(Method):
    """Cross-entropy on clean images with fixed class texts: L = mean_i CE(s cos(z_i, t), y_i).

    A baseline, not a paper: there is no published setting to preset.
    """

    name: ClassVar[str] = "clean"
    summary: ClassVar[str] = "cross-entropy on clean images, text frozen: ordinary fine-tuning"

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels and clean images."""
        return frozenset({"labels", "clean"})

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`: cross-entropy of clean images."""
        assert batch.clean is not None
        return {"ce": cross_entropy(batch.logits(batch.clean), batch.labels).mean()}
