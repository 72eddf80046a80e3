"""In the style of Delta-CLIP: CLIP's own training, on adversarial images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, TextMode
from clipguard.finetuning.methods.captions.contrastive import Duplicates, info_nce


@dataclass(frozen=True)
class DeltaCLIPStyle(Method):
    """Adversarial contrastive training in the style of Delta-CLIP (Wang et al. 2025); not a reproduction.

    L = InfoNCE(z', c), z' of adversarial images and c of their captions; the attack maximises it. Delta-CLIP is trained
    so from scratch on web data. Its recipe (data, eps, schedule) is not public, so that the loss is what its paper says
    in words, both towers are trained, and there is no preset.

    Args:
        text: "encoder" trains the text tower, too; "frozen" does not, and is AdvFLYP without its regularisers.
        text_lr: peak learning rate of the text tower; by default 1e-6.
        duplicates: of images with the same caption in a batch; see `pair_targets`.
    """

    text: Literal["encoder", "frozen"] = "encoder"
    text_lr: float | None = None
    duplicates: Duplicates = "positive"

    name: ClassVar[str] = "delta-clip-style"
    summary: ClassVar[str] = (
        "contrastive on adversarial images and captions, both towers; no public recipe (after Wang et al. 2025)"
    )
    citation: ClassVar[str] = (
        "in the style of Wang et al., Double Visual Defense: Adversarial Pre-training and Instruction Tuning for "
        "Improving Vision-Language Model Robustness, 2025, arXiv 2501.09446"
    )

    def text_mode(self) -> TextMode:
        """`text`."""
        return self.text

    def text_learning_rate(self) -> float:
        """`text_lr`, or the default of the mode."""
        return super().text_learning_rate() if self.text_lr is None else self.text_lr

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Captions and adversarial images."""
        return frozenset({"captions", "adversarial"})

    def images_meet(self) -> bool:
        """Yes."""
        return True

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) InfoNCE."""
        return info_nce(adversarial, batch, self.duplicates)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`contrastive`."""
        assert batch.adversarial is not None
        return {"contrastive": info_nce(batch.adversarial, batch, self.duplicates).mean()}
