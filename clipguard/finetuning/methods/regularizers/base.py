"""What a regulariser is: terms beside the loss of any method; and a method with one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.finetuning.methods.base import Batch, Method, Need, TextMode
from clipguard.finetuning.methods.captions.edits import CharacterEdits
from clipguard.finetuning.methods.prompts.design import PromptDesign


@dataclass(frozen=True)
class Regularizer(ABC):
    """Terms beside a method's loss. A subclass is a frozen dataclass whose fields are its options, with their defaults.

    Terms are means over images, so that parts of a batch add up to them.

    Class attributes:
        name: as it is typed.
        citation: authors, title and place of the paper.
    """

    name: ClassVar[str]
    citation: ClassVar[str]

    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """Which parts of the batch `terms` reads."""

    @abstractmethod
    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Terms by name, scalars, each with its weight already on it; no method has a term of such a name."""


@dataclass(frozen=True)
class Regularized(Method):
    """A method with a regulariser's terms beside its own; all else is as the method says."""

    method: Method
    regularizer: Regularizer

    name: ClassVar[str] = "regularized"
    summary: ClassVar[str] = "a method with a regulariser"

    def __post_init__(self) -> None:
        """It goes by the method's name."""
        object.__setattr__(self, "name", self.method.name)
        object.__setattr__(self, "needs_random_start", self.method.needs_random_start)

    def text_mode(self) -> TextMode:
        """As the method."""
        return self.method.text_mode()

    def prompt_design(self) -> PromptDesign | None:
        """As the method."""
        return self.method.prompt_design()

    def reads_templates(self) -> bool:
        """If the method does, or the regulariser, which compares predictions of classes."""
        predicts = bool(self.regularizer.needs()) and self.prompt_design() is None
        return predicts or self.method.reads_templates()

    def text_learning_rate(self) -> float:
        """As the method."""
        return self.method.text_learning_rate()

    def needs(self, progress: float) -> frozenset[Need]:
        """Of both."""
        return self.method.needs(progress) | self.regularizer.needs()

    def all_needs(self) -> frozenset[Need]:
        """Of both."""
        return self.method.all_needs() | self.regularizer.needs()

    def divisible(self) -> bool:
        """As the method."""
        return self.method.divisible()

    def takes_prompts(self) -> bool:
        """As the method."""
        return self.method.takes_prompts()

    def edits(self) -> CharacterEdits | None:
        """As the method."""
        return self.method.edits()

    def edit_objective(self, edited: Tensor, batch: Batch) -> Tensor:
        """As the method."""
        return self.method.edit_objective(edited, batch)

    def images_meet(self) -> bool:
        """As the method."""
        return self.method.images_meet()

    def sees_images(self) -> bool:
        """As the method, which a regulariser of predictions on images must not change."""
        return self.method.sees_images()

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """The method's: the attack knows nothing of the regulariser."""
        return self.method.attack_objective(adversarial, batch)

    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Of both."""
        return {**self.method.terms(batch, progress), **self.regularizer.terms(batch)}
