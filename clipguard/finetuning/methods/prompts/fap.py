"""FAP: prompts in both towers, trained to be right on clean images and to say the same of adversarial ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, cross_entropy, kl_divergence
from clipguard.finetuning.methods.prompts.design import PromptDesign


@dataclass(frozen=True)
class FAP(Method):
    """Few-shot adversarial prompt learning (FAP, Zhou et al., NeurIPS 2024), on open_clip's ViTs.

    L = mean_i CE(l(x_i), y_i) + lam mean_i KL(p(x_i) || p(x'_i)) (1 + cos(z_i, z'_i)), p = softmax l, l = s cos(z, t),
    with gradients through both sides, as in the published code: the factor also drives adversarial embeddings away from
    clean ones. The attack maximises the KL, which has no gradient at the clean image: it needs a random start.

    Trained are prompts in both towers, coupled as in MaPLe: at the entrance of the first block context vectors of the
    text and a linear layer of them for the image tower; in deeper blocks vectors of the image tower, and a linear layer
    of them for the text.

    Decided here: the published settings files ask for a term ("ce") that its trainer has not; this is the one its
    scripts name ("cos"). The text begins with `init` for every data set, where the code has a template for each. Towers
    of fewer blocks than `depth` have prompts in all of theirs, and it is said. What the result's file holds are the
    vectors that the linear layers come to.

    Args:
        tokens: context vectors in each tower, in place of the first tokens of `init`.
        depth: blocks that have prompts, of each tower.
        init: words before the class name, joined by _.
        lam: weight of the second term: 1.5 in the authors' few-shot script, 1 in their settings file.

    Preset "paper": the published few-shot settings for ViT-B/32.
    """

    tokens: int = 2
    depth: int = 9
    init: str = "a_photo_of_a"
    lam: float = 1.5

    name: ClassVar[str] = "fap"
    needs_random_start: ClassVar[bool] = True
    summary: ClassVar[str] = "learned prompts in both towers, clean cross-entropy and KL; ViTs (Zhou et al. 2024)"
    citation: ClassVar[str] = (
        "Zhou et al., Few-Shot Adversarial Prompt Learning on Vision-Language Models, NeurIPS 2024"
    )
    usual: ClassVar[Mapping[str, Any]] = {"optimizer": "sgd", "momentum": 0.9, "lr": 3.5e-3}
    presets: ClassVar[Presets] = {
        "paper": {
            "optimizer": "sgd",
            "lr": 0.0035,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "epochs": 10,
            "batch_size": 4,
            "norm": "linf",
            "eps": 1.0,
            "attack_steps": 2,
            "step_size": 1.0,
            "augment": "none",
            "templates": "a photo of a {}.",
        }
    }

    def __post_init__(self) -> None:
        """Raises FinetuneError for options that leave no prompt."""
        for option in ("tokens", "depth"):
            if getattr(self, option) < 1:
                raise FinetuneError(f"fap: {option} must be at least 1, not {getattr(self, option)}.")
        if not self.init:
            raise FinetuneError("fap: init must be words joined by _, as a_photo_of_a.")

    def prompt_design(self) -> PromptDesign:
        """In both towers."""
        return PromptDesign(self.tokens, self.init.replace("_", " "), blocks=self.depth, vision=True)

    def divisible(self) -> bool:
        """Yes."""
        return True

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels, clean and adversarial images."""
        return frozenset({"labels", "clean", "adversarial"})

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) KL from clean to adversarial predictions."""
        assert batch.clean is not None
        return kl_divergence(batch.logits(batch.clean), batch.logits(adversarial))

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce` of clean images, and `kl` with its factor."""
        assert batch.clean is not None
        assert batch.adversarial is not None
        alike = 1 + F.cosine_similarity(batch.clean, batch.adversarial, dim=-1)
        return {
            "ce": cross_entropy(batch.logits(batch.clean), batch.labels).mean(),
            "kl": self.lam * (self.attack_objective(batch.adversarial, batch) * alike).mean(),
        }
