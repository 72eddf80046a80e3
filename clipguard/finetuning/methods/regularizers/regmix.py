"""RegMix: what a model says of the attack's random start, of its end and of the clean image should be alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Need, kl_divergence
from clipguard.finetuning.methods.regularizers.base import Regularizer


@dataclass(frozen=True)
class RegMix(Regularizer):
    """KL divergences between predictions (Liu & Ojha, arXiv 2510.05317), beside the loss of any method.

    alpha KL(p_final || p_start) + beta KL(p_start || p_final) + gamma KL(p_clean || p_final), means over the batch:
    p_final is the softmax over classes, at the model's logit scale, of the adversarial image, p_start that of the
    image where the training attack began at random, p_clean that of the clean image.

    The paper (CIFAR and Tiny-ImageNet from scratch, not CLIP) has the first two for adversarial mutual regularisation,
    one the main and one the auxiliary term, so that alpha and beta differ; and the clean output as a target of the
    adversarial one. Its weights, the direction of the clean term and where gradients stop were not found. Decided
    here: the direction above, in which the clean output is the target; that start and clean outputs are fixed
    targets; and the weights' defaults. With alpha = beta it is Jeffreys' divergence, with 0, 0, 0 the method alone.

    Args:
        alpha, beta, gamma: the weights; a term without weight is left out, with what it needs.
        fixed: whether start and clean outputs are targets without gradients; false: they are trained, too.
    """

    alpha: float = 1.0
    beta: float = 0.5
    gamma: float = 1.0
    fixed: bool = True

    name: ClassVar[str] = "regmix"
    citation: ClassVar[str] = "Liu & Ojha, RegMix, arXiv 2510.05317"

    def needs(self) -> frozenset[Need]:
        """Adversarial images; for each term that has a weight, its other image."""
        needs: set[Need] = set()
        if self.alpha or self.beta:
            needs |= {"adversarial", "start" if not self.fixed else "fixed_start"}
        if self.gamma:
            needs |= {"adversarial", "clean"}
        return frozenset(needs)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """`regmix_alpha`, `regmix_beta`, `regmix_gamma`; a term without weight is left out."""
        terms: dict[str, Tensor] = {}
        if not self.needs():
            return terms
        if self.fixed:  # texts are the method's own matter
            batch = batch.with_text(batch.text.detach())
        assert batch.adversarial is not None
        final = batch.logits(batch.adversarial)
        if self.alpha or self.beta:
            start = self._target(batch, batch.start)
            if self.alpha:
                terms["regmix_alpha"] = self.alpha * kl_divergence(final, start).mean()
            if self.beta:
                terms["regmix_beta"] = self.beta * kl_divergence(start, final).mean()
        if self.gamma:
            terms["regmix_gamma"] = self.gamma * kl_divergence(self._target(batch, batch.clean), final).mean()
        return terms

    def _target(self, batch: Batch, embeddings: Tensor | None) -> Tensor:
        assert embeddings is not None
        logits = batch.logits(embeddings)
        return logits.detach() if self.fixed else logits
