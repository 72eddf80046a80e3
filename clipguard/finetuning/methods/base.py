"""What a fine-tuning method is: an objective for the training attack, and loss terms; nothing of loop or disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.finetuning.methods.captions.edits import CharacterEdits
from clipguard.finetuning.methods.prompts.design import PromptDesign

Need = Literal[
    "labels",
    "classes",  # class texts, of methods that need no labels; where there are labels there are class texts, too
    "adversarial",
    "clean",
    "original_clean",
    "original_adversarial",
    "start",
    "fixed_start",
    "clean_patches",  # which bring the embeddings with them, and so do the next two
    "adversarial_patches",
    "original_clean_patches",
    "class_prompts",
    "negative_text",
    "captions",
    "original_captions",
    "edited_captions",
]
CAPTION_NEEDS: frozenset[Need] = frozenset({"captions", "original_captions", "edited_captions"})
TEXT_NEEDS: frozenset[Need] = CAPTION_NEEDS | {"labels", "classes", "class_prompts", "negative_text"}
TextMode = Literal["frozen", "head", "encoder", "free", "laat"]
NEGATIVE_PROMPT = "This is not a photo of a {}"  # of Comp-TGA's code
Presets = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Batch:
    """What a method may look at. Embeddings are not normalised; those that it does not need are None.

    Attributes:
        text, original_text: (C, D) unit rows, tuned and as the model came; `text` carries gradients in `terms` if the
            method tunes it, and is detached for the training attack.
        logit_scale: the factor on cosines, exp already taken (100 for CLIP); fixed.
        labels: (B,) int64, or None for data without labels.
        adversarial, clean: (B, D) of the tuned image tower, with gradients; under the training attack, `adversarial`
            is None and `clean` is detached.
        start: (B, D) of the tuned image tower, of images where the training attack began at random; with gradients for
            those that need "start", without for those that need "fixed_start".
        original_clean, original_adversarial: (B, D) of the frozen copy of the image tower as it came.
        clean_patches, adversarial_patches, original_clean_patches: (B, N, D) patch tokens of the same passes, in the
            space of the embeddings and not normalised; of vision transformers alone.
        class_prompts, original_prompts: (C, T, D) unit rows, of which `text` and `original_text` are the means over the
            T prompts of a class; the second without gradients.
        negative_text: (C, D) unit rows, as the model came: of `NEGATIVE_PROMPT` with each class's name.
        captions, original_captions: (B, D) of each image's caption, by the text tower in training and as it came;
            `captions` has gradients if that tower is trained, and is detached under the training attack.
        edited_captions: (B, D) of the captions that the attack on characters edited, by the tower in training.
        caption_ids: (B,) int64, equal where captions have the same tokens.
    """

    text: Tensor
    original_text: Tensor
    logit_scale: float
    labels: Tensor | None = None
    adversarial: Tensor | None = None
    clean: Tensor | None = None
    original_clean: Tensor | None = None
    original_adversarial: Tensor | None = None
    start: Tensor | None = None
    clean_patches: Tensor | None = None
    adversarial_patches: Tensor | None = None
    original_clean_patches: Tensor | None = None
    class_prompts: Tensor | None = None
    original_prompts: Tensor | None = None
    negative_text: Tensor | None = None
    captions: Tensor | None = None
    original_captions: Tensor | None = None
    edited_captions: Tensor | None = None
    caption_ids: Tensor | None = None

    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, C) scaled cosines with the tuned text."""
        return self.logit_scale * F.normalize(embeddings, dim=-1) @ self.text.T

    def with_original_text(self) -> Batch:
        """The same with the text as the model came."""
        return replace(self, text=self.original_text, class_prompts=self.original_prompts)

    def with_text(self, text: Tensor) -> Batch:
        """The same with another text (C, D)."""
        return replace(self, text=text)


@dataclass(frozen=True)
class Method(ABC):
    """One way to fine-tune. A subclass is a frozen dataclass whose fields are its options, with their defaults.

    `progress` runs from 0 at the first step to 1 at the end, for methods that train in phases.

    Class attributes:
        name: as it is typed, such as "pmg-aft": small letters, digits and hyphens.
        summary: one line for lists.
        citation: authors, title and place of the paper; "" for what has none.
        presets: trainer settings of the paper and of its published code, fields of `FinetuneConfig` by preset name.
        usual: such settings without a preset, where those of fine-tuning an image tower do not suit.
        needs_random_start: whether the attack's objective has no gradient at the clean image.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str] = ""
    presets: ClassVar[Presets] = {}
    usual: ClassVar[Mapping[str, Any]] = {}
    needs_random_start: ClassVar[bool] = False

    def text_mode(self) -> TextMode:
        """How the class texts are tuned."""
        return "frozen"

    def prompt_design(self) -> PromptDesign | None:
        """The prompts that are trained, in place of all else; None: none are."""
        return None

    def text_learning_rate(self) -> float:
        """Peak learning rate of the text side's own parameters, which are no parameters of the image tower."""
        return 1e-6 if self.text_mode() == "encoder" else 1e-3

    @abstractmethod
    def needs(self, progress: float) -> frozenset[Need]:
        """Which parts of the batch `terms` and `attack_objective` read at this point; the rest is not computed."""

    def all_needs(self) -> frozenset[Need]:
        """What is needed at any point: at the first step or at the end. To be overridden if it is neither."""
        return self.needs(0.0) | self.needs(1.0)

    def reads_templates(self) -> bool:
        """Whether the loss depends on class texts, and with them on the templates, which learned prompts replace."""
        return self.prompt_design() is None and bool(self.all_needs() & {"labels", "classes"})

    def divisible(self) -> bool:
        """Whether the loss is a mean over images (and terms without any), so that parts of a batch add up to it.

        It is not where terms sum over the batch, or its images meet. To be overridden where it is: then a step may be
        divided into passes that fit into memory.
        """
        return False

    def takes_prompts(self) -> bool:
        """Whether prompts of an image's class do where it has no caption."""
        return False

    def edits(self) -> CharacterEdits | None:
        """How captions are attacked; for methods that need "edited_captions"."""
        return None

    def edit_objective(self, edited: Tensor, batch: Batch) -> Tensor:
        """(B, R) what the attack on captions maximises, from embeddings (B, R, D) of R candidates each."""
        raise NotImplementedError

    def images_meet(self) -> bool:
        """Whether an image's attack objective depends on the other images of the batch."""
        return False

    def sees_images(self) -> bool:
        """Whether it needs images at all; one that does not leaves the image tower as it is."""
        return not self.all_needs() <= TEXT_NEEDS

    def attack_objective(self, adversarial: Tensor, batch: Batch) -> Tensor:
        """(B,) what the training attack maximises, from embeddings (B, D) of the perturbed images.

        By default cross-entropy with the labels, as of Madry et al. 2018. Only asked of methods that need
        "adversarial".
        """
        return cross_entropy(batch.logits(adversarial), batch.labels)

    @abstractmethod
    def terms(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The loss terms by name, scalars, each with its weight already on it; the loss is their sum."""


def cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor:
    """(B,) cross-entropy of each row."""
    assert labels is not None
    return F.cross_entropy(logits, labels, reduction="none")


def kl_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(B,) KL(softmax(teacher) || softmax(student)) of logits (B, C)."""
    p, q = torch.log_softmax(teacher, dim=1), torch.log_softmax(student, dim=1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1)
