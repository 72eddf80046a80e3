"""APT: context vectors of the text prompt, trained on adversarial images; both towers stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.methods.base import Batch, Method, Need, Presets, cross_entropy
from clipguard.finetuning.methods.prompts.design import Position, PromptDesign

TOKENS, ASCENT = 16, 0.02  # by default


@dataclass(frozen=True)
class APT(Method):
    """Adversarial prompt tuning (APT, Li et al., CVPR 2024, section 4), made for image towers that are robust already.

    L = mean_i CE(s cos(z'_i, t_k(v)), y_i), with z' of adversarial images, t_k(v) the text of `V1 ... VM NAME_k.` and
    the context vectors v the only parameters. The attack maximises the same cross-entropy.

    Decided here: words of `init` count as their tokens, not as words, as the published code has it, which cuts words of
    several tokens; with class-specific context each class begins with them, where that code then has one context for
    all; context vectors that a short text tower has no room for are left out, and said to be. The published code holds
    the learning rate at 1e-5 for the first epoch; here the warm-up of all methods stands in its place.

    Args:
        tokens: M, context vectors; by default 16, or as many as `init` has tokens, which then says it alone.
        position: of the class name: at the "end" of the context, in its "middle" or in "front" of it.
        class_specific: a context for each class, which then knows no other class.
        init: words that the context begins with, joined by _, as in a_photo_of_a; "": random vectors.
        attack: of the training images: "onfly" attacks the current prompt; "constant" the fixed text of `templates`;
            "perturbed" the current prompt, which also ascends after each step, and is put back for the loss.
        ascent: of "perturbed" alone: step size on the mean cross-entropy, by default 0.02, a guess: the paper's is not
            known.

    Preset "paper": the published code's for ViT-B/32 (50 epochs; eps 4/255). Its few-shot subsets have no setting here:
    `n_samples` takes a stratified subset.
    """

    tokens: int | None = None
    position: Position = "end"
    class_specific: bool = False
    init: str = ""
    attack: Literal["onfly", "constant", "perturbed"] = "onfly"
    ascent: float | None = None

    name: ClassVar[str] = "apt"
    summary: ClassVar[str] = "learned prompts, cross-entropy on adversarial images, all weights frozen (Li et al. 2024)"
    citation: ClassVar[str] = (
        "Li et al., One Prompt Word is Enough to Boost Adversarial Robustness for Pre-trained Vision-Language Models, "
        "CVPR 2024, arXiv 2403.01849"
    )
    usual: ClassVar[Mapping[str, Any]] = {"optimizer": "sgd", "momentum": 0.9, "lr": 2e-3}
    presets: ClassVar[Presets] = {
        "paper": {
            "optimizer": "sgd",
            "lr": 0.002,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "epochs": 50,
            "batch_size": 32,
            "norm": "linf",
            "eps": 4.0,
            "attack_steps": 3,
            "step_size": 8 / 3,
            "augment": "standard",
            "templates": "a photo of a {}",
        }
    }

    def __post_init__(self) -> None:
        """Raises FinetuneError for a prompt without context, and for an option that another one leaves without use."""
        if self.tokens is not None and self.tokens < 1:
            raise FinetuneError(f"apt: tokens must be at least 1, not {self.tokens}.")
        if self.tokens is not None and self.init:
            raise FinetuneError("apt: init says with its words how many context vectors there are: leave tokens out.")
        if self.ascent is not None and self.attack != "perturbed":
            raise FinetuneError("apt: ascent is of attack=perturbed: add that, or leave ascent out.")

    def prompt_design(self) -> PromptDesign:
        """As the options say."""
        ascent = ASCENT if self.ascent is None else self.ascent
        return PromptDesign(
            tokens=0 if self.init else self.tokens or TOKENS,
            words=self.init.replace("_", " "),
            position=self.position,
            class_specific=self.class_specific,
            ascent=ascent if self.attack == "perturbed" else 0.0,
        )

    def divisible(self) -> bool:
        """Yes, but where the prompt ascends, for which the images of a pass meet."""
        return self.attack != "perturbed"

    def needs(self, progress: float) -> frozenset[Need]:  # noqa: ARG002
        """Labels and adversarial images."""
        return frozenset({"labels", "adversarial"})

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) cross-entropy with the text that `attack` says."""
        if self.attack == "constant":
            batch = batch.with_text(batch.original_text)
        return cross_entropy(batch.logits(adversarial), batch.labels)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        """`ce`: cross-entropy of adversarial images."""
        assert batch.adversarial is not None
        return {"ce": cross_entropy(batch.logits(batch.adversarial), batch.labels).mean()}
