"""CLIPure-Cos: purification in the space of embeddings (Zhang et al., ICLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import Backward, Classifier, Defense, View, with_gradient_of
from clipguard.defenses.options import at_least


@dataclass(frozen=True)
class CLIPureCos(Defense):
    """Moves an embedding toward that of a prompt without a class (algorithm 1; the authors' CLIPure_Cos.py).

    T is the mean embedding of the 80 prompts for ImageNet with the empty name. In each of `steps` steps the unit
    embedding u goes to u + step_size g, of unit length again, where g is the gradient of cos(u, T), of unit length.

    g is a tangent, so a step of 30 turns u by atan(30) = 88.09 degrees toward T in the plane of both. From less than
    that away, as most embeddings of CLIP are, the first step goes past T and the next one back: an even number of
    steps, such as the published 10, leaves such an embedding as it is, and an odd one puts it to the other side of T.
    From further away the steps change it much, and clean accuracy may fall (of `tiny` by a third: docs/defenses.md).

    Decided here: the authors divide g by its norm over the whole batch, so that an image's class depends on its
    neighbours; here each image has its own, which is theirs in a batch of one. Arithmetic is in float64. A tuned text
    map that a model keeps beside its weights does not act on T. In their code a gradient reaches the image multiplied
    by about 1e-15, which is rounding noise: an attack through it sees nothing. Here it is the identity, or that of the
    steps themselves.

    Attributes:
        steps: of the purification.
        step_size: as a multiple of the embedding's length.
    """

    name: ClassVar[str] = "clipure-cos"
    summary: ClassVar[str] = "embeddings turned toward a prompt without a class (Zhang et al. 2025)"
    citation: ClassVar[str] = (
        "Zhang et al. CLIPure: Purification in Latent Space via CLIP for Adversarially Robust Zero-Shot "
        "Classification. ICLR 2025. arXiv:2502.18176"
    )
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "unrolled")
    embeds: ClassVar[bool] = True
    steps: int = 10
    step_size: float = 30

    def __post_init__(self) -> None:
        at_least(self, steps=1, step_size=0)

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if classifier.prompts is None:
            raise DefenseError(f"`defense`: {self.name} needs a CLIP model's text tower, which is not at hand here.")

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return classifier.score(self.embed(classifier, x, view, normalize=True))

    def embed(self, classifier: Classifier, x: Tensor, view: View, *, normalize: bool) -> Tensor:
        features = classifier.embed(x, view, normalize=normalize).float()
        purified = self.purified(features, anchor(classifier))
        return purified if view.backward == "unrolled" else with_gradient_of(purified.detach(), features)

    def purified(self, features: Tensor, toward: Tensor) -> Tensor:
        """Embeddings (B, D) of any length, which they keep, turned toward (D,)."""
        goal = F.normalize(toward.double(), dim=0)
        length: Tensor = features.double().norm(dim=1, keepdim=True)
        unit = features.double() / length
        for _ in range(self.steps):
            tangent = goal - (unit * goal).sum(dim=1, keepdim=True) * unit
            unit = F.normalize(unit + self.step_size * F.normalize(tangent, dim=1), dim=1)
        return (length * unit).to(features.dtype)


def anchor(classifier: Classifier) -> Tensor:
    """T (D,): what a prompt says that names nothing."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    assert classifier.prompts is not None  # see `check`
    return classifier.prompts.encode([template("") for template in OPENAI_IMAGENET_TEMPLATES]).mean(dim=0)
