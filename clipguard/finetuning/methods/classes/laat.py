"""LAAT: adversarial training towards class texts that were spread apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, TextMode, cross_entropy


@dataclass(frozen=True)
class LAAT(Method):
    """Language-driven anchors for adversarial training (LAAT, Li et al. 2024), with a CLIP image tower.

    L = mean_i CE(cos(z'_i, t) / tau, y_i) + beta mean_i (1 - cos(z_i, z'_i)): the first term is the alignment
    cross-entropy (A-CE), the second the smoothness of the authors' code (its `TRADES-cos`; the 1 is ours). t are the
    expanded anchors: the frozen class texts, their angles to their mean stretched until the farthest has 90 degrees
    (`LaatMap` of `clipguard.models.text.tuned`). The attack maximises A-CE. With beta 0, tau = 1 / s and plain texts it
    is TeCoA.

    The authors train small networks from scratch; their code has no CLIP image tower, so this is a re-implementation.
    That A-CE is the cross-entropy at tau 1 is read from their code. Other class names get the same stretch, with the
    pole and widest angle of the training prompts, when the checkpoint is scored; `text=original` scores it with plain
    texts, too.

    Args:
        tau: temperature of the cosines. At 1 the cross-entropy of C classes never falls below log(1 + (C - 1) / e^2).
        beta: weight of the smoothness; 1 in the authors' command, and 0 leaves it out.

    Preset "paper": the authors' command line (ResNet-12 and Conv4 from scratch on CIFAR-FS, without their learning
    rate's steps and their weight averaging). Its learning rate of 0.05 is for networks that know nothing yet.
    """

    tau: float = 1.0
    beta: float = 1.0

    name: ClassVar[str] = "laat"
    summary: ClassVar[str] = "cross-entropy of cosines with spread class texts, and smoothness (Li et al. 2024)"
    citation: ClassVar[str] = (
        "Li et al., Language-Driven Anchors for Zero-Shot Adversarial Robustness, CVPR 2024, arXiv 2301.13096"
    )
    presets: ClassVar[Presets] = {
        "paper": {
            "train": "visual",
            "optimizer": "sgd",
            "lr": 0.05,
            "weight_decay": 5e-4,
            "epochs": 100,
            "batch_size": 128,
            "norm": "linf",
            "eps": 8.0,
            "attack_steps": 7,
            "step_size": 2.0,
            "templates": "This is a photo of a {}",
        }
    }

    def __post_init__(self) -> None:
        """Raises FinetuneError for a temperature of 0."""
        if self.tau <= 0:
            raise FinetuneError("laat: tau must be above 0.")

    def text_mode(self) -> TextMode:
        """Expanded; nothing of it is trained."""
        return "laat"

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels and adversarial images; clean ones for the smoothness, if it has a weight."""
        needs: set[Need] = {"labels", "adversarial"}
        return frozenset(needs | {"clean"} if self.beta else needs)

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) A-CE."""
        return cross_entropy(replace(batch, logit_scale=1 / self.tau).logits(adversarial), batch.labels)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`, and `smoothness` if it has a weight."""
        assert batch.adversarial is not None
        terms = {"ce": self.attack_objective(batch.adversarial, batch).mean()}
        if self.beta:
            assert batch.clean is not None
            terms["smoothness"] = self.beta * (1 - F.cosine_similarity(batch.clean, batch.adversarial)).mean()
        return terms
