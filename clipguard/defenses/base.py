"""What a defence is: it stands around a classifier, and says what an attacker needs to know of it.

An attacker who knows the defence chooses what its gradient is. `Backward` names the choices; whichever is taken, the
values are those of the defence itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from clipguard.core.errors import DefenseError
from clipguard.defenses.draws import Draws

Backward = Literal["identity", "surrogate", "unrolled"]
"""How an attack differentiates through a defence.

- identity: as if it changed nothing (BPDA, Athalye, Carlini and Wagner 2018, section 4.1).
- surrogate: through something smooth in its place, which the defence names (the same, section 4.2).
- unrolled: through its own steps, second derivatives included.
"""


@dataclass(frozen=True)
class View:
    """How an image is looked at.

    Attributes:
        draws: the random numbers of random defences.
        backward: what the gradient is; it changes no value.
        own: whether each defence of a chain takes the last of its own gradients instead.
    """

    draws: Draws = field(default_factory=Draws)
    backward: Backward = "identity"
    own: bool = False

    def of(self, defense: Defense, x: Tensor) -> View:
        """The same for one defence of several, which sees the images x (B, C, H, W)."""
        draws = replace(self.draws.of(x), name=f"{self.draws.name}/{defense.name}")
        return replace(self, draws=draws, backward=defense.backwards[-1] if self.own else self.backward)

    def plain(self) -> View:
        """The same with the gradient that a defence itself takes of what it stands around, whoever attacks it."""
        return replace(self, backward="identity", own=False)


@dataclass(frozen=True)
class Prompts:
    """The text side of a zero-shot classifier, for defences that tune prompts.

    Attributes:
        model: the open_clip model.
        tokenizer: texts to token ids (N, L).
        class_names: C names.
        templates: prompts with `{}` for the name.
    """

    model: Any
    tokenizer: Any
    class_names: Sequence[str]
    templates: Sequence[str]
    _encoded: dict[tuple[str, ...], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (N, D) of N texts, float32, without gradient; encoded once."""
        key = tuple(texts)
        if key not in self._encoded:
            device = next(self.model.parameters()).device
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                features = self.model.encode_text(self.tokenizer(list(texts)).to(device))
                self._encoded[key] = torch.nn.functional.normalize(features.float(), dim=1)
        return self._encoded[key]


class Classifier(Protocol):
    """What a defence stands around: a classifier of pixels (B, 3, H, W) in [0,1], which may be defended itself."""

    @property
    def least_rows(self) -> int:
        """See `least_rows` of the engine."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images that its tower sees; None where that is not known."""

    @property
    def std(self) -> tuple[float, float, float] | None:
        """The standard deviation of its normalisation, by colour; None where that is not known."""

    @property
    def prompts(self) -> Prompts | None:
        """Its text side; None where it has none."""

    def logits(self, x: Tensor, view: View) -> Tensor:
        """(B, classes), float32."""

    def embed(self, x: Tensor, view: View, *, normalize: bool = True) -> Tensor:
        """Image embeddings (B, D). Raises DefenseError where there are none."""

    def score(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of embeddings (B, D) of unit length. Raises DefenseError where there are none."""

    def text(self) -> Tensor:
        """Class embeddings (D, classes), columns of unit length. Raises DefenseError where there are none."""


@dataclass(frozen=True)
class Defense(ABC):
    """One defence with its options. Immutable; a new one is a subclass in a file of its own, and one registration.

    Attributes:
        name: how users name it and results call it; lower-case letters, digits and dashes.
        summary: one line of what it does.
        citation: its paper, ending in `arXiv:NUMBER` if it is there; "" for what has none.
        random: whether it draws random numbers for each image.
        backwards: the gradients that an attacker should try; the first is that of the authors' code where it has one.
        gated: whether it treats some images otherwise, by a test that `flagged` tells.
        embeds: whether it needs embeddings of the classifier it stands around, not logits alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str] = ""
    random: ClassVar[bool] = False
    backwards: ClassVar[tuple[Backward, ...]] = ("identity",)
    gated: ClassVar[bool] = False
    embeds: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """Its options and their values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def parameters(self) -> dict[str, Any]:
        """Name and options, as plain JSON types."""
        return {"defense": self.name, **self.options()}

    def check(self, classifier: Classifier) -> None:
        """Raises DefenseError, in one line, for a classifier that it cannot stand around."""
        if self.embeds:
            classifier.text()

    @abstractmethod
    def cost(self, classes: int) -> tuple[int, int]:
        """Passes of the image tower forward and backward that one image takes at most, with that many classes."""

    @abstractmethod
    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """(B, classes) of images x (B, 3, H, W) in [0,1]: what the defended classifier says. A row of them depends on
        no other row. Differentiable in x as `view.backward` says.
        """

    def embed(self, classifier: Classifier, x: Tensor, view: View, *, normalize: bool) -> Tensor:  # noqa: ARG002
        """(B, D), what a defence around this one sees in place of `classifier.embed`."""
        raise DefenseError(f"`defense`: {self.name} gives no embeddings, which the defence before it needs.")

    def relaxations(self) -> tuple[str, ...]:
        """Names of further objectives that an attacker should try, beside the defended logits themselves."""
        return ()

    def relaxed(self, name: str, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """(B, classes) that an attack of this defence should minimise the true class of, by name: for example the mean
        over both sides of a gate. Success is judged by `logits` alone.
        """
        raise NotImplementedError(name)

    def flagged(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """(B,) bool, the images that the gate takes for attacked."""
        raise NotImplementedError


class Purifier(Defense):
    """A defence that changes the image, and has the classifier say what the changed one is."""

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """The changed images (B, 3, H, W), which need not be differentiable in x."""
        raise NotImplementedError

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        """The same, differentiable in x: by its own steps (`unrolled`), or something smooth near it (`surrogate`)."""
        raise NotImplementedError

    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return classifier.logits(self._changed(classifier, x, view), view)

    def embed(self, classifier: Classifier, x: Tensor, view: View, *, normalize: bool) -> Tensor:
        return classifier.embed(self._changed(classifier, x, view), view, normalize=normalize)

    def _changed(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        changed = self.purify(classifier, x.detach(), view.plain()).detach()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return changed
        # A chain takes the gradient that each of its defences has.
        identity = view.backward == "identity" or view.backward not in self.backwards
        return with_gradient_of(changed, x if identity else self.differentiable(classifier, x, view))


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient that `other` of the same shape has: BPDA."""
    result: Tensor = _WithGradientOf.apply(value, other)
    return result


class _WithGradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:  # noqa: ARG004
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004
        return None, gradients[0]
