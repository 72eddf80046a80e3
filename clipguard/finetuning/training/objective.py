"""From a batch of images to a method's loss terms: embeddings, training attack, terms; only what the method needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from clipguard.attacks.engine.evaluator import frozen
from clipguard.finetuning.methods.base import Batch, Method
from clipguard.finetuning.training.data import ImageBatch
from clipguard.finetuning.training.image_tower import ImageTower
from clipguard.finetuning.training.text_side import TextSide
from clipguard.finetuning.training.training_attack import TrainingAttack


class Student(nn.Module):
    """What is trained: the image tower and, where there are classes, their text.

    Called with pixels (B, 3, H, W) it gives embeddings (B, D), called without it gives class texts (C, D).
    """

    def __init__(self, image: ImageTower, text: TextSide | None) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(self, pixels: Tensor | None = None) -> Tensor:
        if pixels is not None:
            embeddings: Tensor = self.image(pixels)
            return embeddings
        if self.text is None:
            return self.original_text()
        with torch.autocast(self.image.mean.device.type, enabled=False):  # a rounded text moves every logit
            text: Tensor = self.text()
        return text

    def original_text(self) -> Tensor:
        """(C, D) class texts as the model came; (0, 0) without classes."""
        return torch.empty(0, 0) if self.text is None else self.text.original

    def image_parameters(self) -> list[nn.Parameter]:
        """What is trained of the image tower."""
        return [p for p in self.image.parameters() if p.requires_grad]

    def text_parameters(self) -> list[nn.Parameter]:
        """What is trained of the text."""
        return [] if self.text is None else self.text.tuned_parameters()


@dataclass
class Losses:
    """A method's loss terms for the student.

    `forward` is the student, as accelerate wrapped it; `original` a frozen copy of the image tower as it came, if the
    method asks for it; `autocast` gives the context of mixed precision.
    """

    method: Method
    student: Student
    forward: nn.Module
    original: ImageTower | None
    attack: TrainingAttack
    logit_scale: float
    autocast: Callable[[], AbstractContextManager[object]]

    def __call__(self, images: ImageBatch, progress: float) -> tuple[dict[str, Tensor], Batch, dict[str, Tensor]]:
        """Terms by name, the batch they come from, and the mean objective of the training attack as "attack"."""
        needs = self.method.needs(progress)
        x = images.pixels
        batch = Batch(
            text=self.forward(),
            original_text=self.student.original_text(),
            logit_scale=self.logit_scale,
            labels=images.labels,
            # Before the attack, which may look at it; its graph is kept for the loss.
            clean=self.forward(x) if "clean" in needs else None,
            original_clean=self._original(x) if "original_clean" in needs else None,
        )
        seen: dict[str, Tensor] = {}
        if needs & {"adversarial", "original_adversarial"}:
            x_adv, seen["attack"] = self._perturb(x, images.keys, batch)
            batch = replace(
                batch,
                adversarial=self.forward(x_adv) if "adversarial" in needs else None,
                original_adversarial=self._original(x_adv) if "original_adversarial" in needs else None,
            )
        return self.method.terms(batch, progress), batch, seen

    def _original(self, x: Tensor) -> Tensor:
        assert self.original is not None
        with torch.no_grad(), self.autocast():
            embeddings: Tensor = self.original(x)
        return embeddings

    def _perturb(self, x: Tensor, keys: list[int], batch: Batch) -> tuple[Tensor, Tensor]:
        """The training attack, on a tower in eval mode that keeps no activations for its weights."""
        fixed = replace(batch, text=batch.text.detach(), clean=None if batch.clean is None else batch.clean.detach())
        tower = self.student.image

        def objective(x_adv: Tensor) -> Tensor:
            with self.autocast():
                embeddings = tower(x_adv)
            return self.method.attack_objective(embeddings, fixed)

        training = tower.training
        tower.eval()
        with frozen(tower):
            found = self.attack(objective, x, keys)
        tower.train(training)
        return found


@torch.no_grad()
def batch_accuracy(batch: Batch, embeddings: Tensor | None) -> Tensor | None:
    """Share of a batch that the student gets right, a scalar; None without labels or embeddings."""
    if batch.labels is None or embeddings is None:
        return None
    return (batch.logits(embeddings).argmax(dim=1) == batch.labels).float().mean()
