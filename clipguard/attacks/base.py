"""What every attack is: a frozen dataclass of options, whose steps update the state of many images at once.

A row's update reads nothing but that row, so an image's trajectory is the same alone and in a crowd. Updates write
in place where few rows change, so no two columns that an attack writes to may share memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from clipguard.attacks.losses import Loss
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import ThreatModel


class Attack(ABC):
    """One attack of a recipe. An instance is immutable; all that changes lives in `AttackState`.

    Attributes:
        name: how users name it and results call it; lower-case letters, digits and dashes.
        summary: one line of what it does, for `clipguard list attacks`.
        citation: its paper for reports, ending in `arXiv:NUMBER` if it is there; "" for what has none.
        steps_in_name: whether its iterations are part of its name, as in `pgd-10`.
        memoryless: whether the next point depends on nothing but this one and what stays the same within a run: then
            a run that comes back to a point is over (see engine/cycles.py). Not inherited by classes with steps of
            their own.
        black_box: whether it never asks for a gradient.
        fixed: fields that make the attack what it is, and so are no options.
        loss: what each step raises.
        iterations: steps of one run.
        restarts: runs from another random start.
        targets: 0 if untargeted; else how many classes are aimed at, those ranked 2nd, 3rd ... on the clean image.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str] = ""
    steps_in_name: ClassVar[bool] = False
    memoryless: ClassVar[bool] = False
    black_box: ClassVar[bool] = False
    fixed: ClassVar[tuple[str, ...]] = ()
    loss: Loss
    iterations: int
    restarts: int = 1
    targets: int = 0

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if {"start", "query", "update"} & set(vars(cls)) and "memoryless" not in vars(cls):
            cls.memoryless = False

    @property
    def full_name(self) -> str:
        """`pgd-10`, `apgd-ce`: the name that breaks images in the results."""
        return f"{self.name}-{self.iterations}" if self.steps_in_name else self.name

    def options(self) -> dict[str, Any]:
        """The options that a user can set, and their values."""
        hidden = {"loss", *self.fixed, *(() if self.targets else ("targets",))}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in hidden}  # type: ignore[arg-type]

    def parameters(self) -> dict[str, Any]:
        """Name, fixed parameters and options, as plain JSON types."""
        return {"attack": self.full_name, **{name: getattr(self, name) for name in self.fixed}, **self.options()}

    def runs(self, n_classes: int) -> int:
        """How often one image is attacked: restarts x targets, never more targets than other classes."""
        return self.restarts * max(1, min(self.targets, n_classes - 1))

    def most_passes(self) -> int:
        """Forward passes that one run takes at most; of an attack with a `finished` of its own, its own answer."""
        return self.iterations + 1

    def choose_target(self, state: AttackState) -> Tensor:
        """(B,) the class a run aims at (the runner-up for untargeted attacks, which ignore it)."""
        n_targets = max(1, min(self.targets, state["ranking"].shape[1]))
        return state["ranking"].gather(1, (state["run"] % n_targets)[:, None]).squeeze(1)

    @abstractmethod
    def start(self, state: AttackState, threat: ThreatModel, random: PerImageRandom) -> None:
        """Set this attack's own columns. Every row of `state` begins a run."""

    @abstractmethod
    def query(self, state: AttackState) -> Tensor:
        """The next points to evaluate (B, C, H, W)."""

    def wants_gradient(self, state: AttackState) -> Tensor:
        """(B,) bool: which rows need the loss gradient at their query; the rest get zeros."""
        return state["step"] < self.iterations

    @abstractmethod
    def update(
        self, state: AttackState, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        """Move on from the points that `query` gave; the engine counts `step` afterwards.

        Args:
            state: of the rows that were evaluated. Those that are broken go on, too, and are dropped afterwards.
            threat: the ball to stay in.
            x: what `query` gave (B, C, H, W), not rounded to 8-bit images: steps smaller than one grey level would
                otherwise be rounded away. May be overwritten.
            logits: (B, classes) at the admissible points next to `x` (8-bit images, if the threat says so).
            loss: (B,) there.
            grad: (B, C, H, W) of the loss there; zero for rows that wanted none. May be overwritten.
        """

    def finished(self, state: AttackState) -> Tensor:
        """(B,) bool, asked after `step` was counted."""
        return state["step"] > self.iterations
