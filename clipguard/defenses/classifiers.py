"""Classifiers as defences see them: the undefended one, which counts its passes, and one with defences around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import Classifier, Defense, Prompts, View
from clipguard.defenses.gradients import affine


@dataclass
class PassCount:
    """Passes through the classifier itself, in images."""

    forward: int = 0
    backward: int = 0


class Undefended:
    """A classifier without a defence; see `Classifier`.

    Args:
        model: pixels (B, 3, H, W) in [0,1] -> logits (B, classes), frozen and in eval mode. What else it has
            (`embed`, `score`, `text`, `preprocessing`) is what defences can ask for.
        prompts: its text side, if it has one.
        count: is told of every pass.
    """

    def __init__(self, model: nn.Module, prompts: Prompts | None = None, count: PassCount | None = None) -> None:
        self.model, self.prompts = model, prompts
        self.count = count or PassCount()

    @property
    def least_rows(self) -> int:
        return int(getattr(self.model, "least_rows", 1))

    @property
    def image_size(self) -> tuple[int, int] | None:
        preprocessing = getattr(self.model, "preprocessing", None)
        return None if preprocessing is None else preprocessing.image_size

    @property
    def std(self) -> tuple[float, float, float] | None:
        preprocessing = getattr(self.model, "preprocessing", None)
        return None if preprocessing is None else preprocessing.std

    def logits(self, x: Tensor, view: View) -> Tensor:
        if self._embeds:  # by its parts, which have second derivatives
            return self.score(self.embed(x, view)).float()
        out: Tensor = self.model(x)
        return self._counted(out).float()

    def embed(self, x: Tensor, view: View, *, normalize: bool = True) -> Tensor:  # noqa: ARG002
        out: Tensor = self._part("embed")(x, normalize=normalize)
        return self._counted(out)

    def score(self, features: Tensor) -> Tensor:
        return affine(self._part("score"), features)

    def text(self) -> Tensor:
        out: Tensor = self._part("text")
        return out

    @property
    def _embeds(self) -> bool:
        return all(hasattr(self.model, name) for name in ("embed", "score", "text"))

    def _part(self, name: str):  # type: ignore[no-untyped-def]
        if not self._embeds:
            raise DefenseError("`defense`: it needs a CLIP model's embeddings, and a module gives logits alone.")
        return getattr(self.model, name)

    def _counted(self, out: Tensor) -> Tensor:
        n, count = len(out), self.count
        count.forward += n
        if out.requires_grad:

            def note(gradient: Tensor) -> Tensor:
                count.backward += n
                return gradient

            out.register_hook(note)  # type: ignore[no-untyped-call]
        return out


class Defended:
    """A classifier with one defence around it, which may be defended already; see `Classifier`."""

    defense: Defense
    classifier: Classifier

    def __init__(self, defense: Defense, classifier: Classifier) -> None:
        defense.check(classifier)
        inner = classifier.defense if isinstance(classifier, Defended) else None
        if defense.embeds and inner is not None and type(inner).embed is Defense.embed:
            raise DefenseError(
                f"`defense`: {defense.name} needs embeddings, and {inner.name}, which comes after it, gives none; "
                "write them in the other order, or leave one out."
            )
        self.defense, self.classifier = defense, classifier

    @property
    def least_rows(self) -> int:
        return self.classifier.least_rows

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self.classifier.image_size

    @property
    def std(self) -> tuple[float, float, float] | None:
        return self.classifier.std

    @property
    def prompts(self) -> Prompts | None:
        return self.classifier.prompts

    def logits(self, x: Tensor, view: View) -> Tensor:
        return self.defense.logits(self.classifier, x, view.of(self.defense, x)).float()

    def embed(self, x: Tensor, view: View, *, normalize: bool = True) -> Tensor:
        return self.defense.embed(self.classifier, x, view.of(self.defense, x), normalize=normalize)

    def score(self, features: Tensor) -> Tensor:
        return self.classifier.score(features)

    def text(self) -> Tensor:
        return self.classifier.text()


def defend(model: nn.Module, defenses: Sequence[Defense], prompts: Prompts | None = None) -> Classifier:
    """A model with defences around it; an image meets the first of them first.

    Raises:
        DefenseError: where one of them cannot stand around what is inside.
    """
    classifier: Classifier = Undefended(model, prompts)
    for defense in reversed(defenses):
        classifier = Defended(defense, classifier)
    return classifier
