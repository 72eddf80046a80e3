"""Which prompts a method learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Position = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class PromptDesign:
    """The context vectors that a method trains, in prompts `WORDS NAME.`

    Attributes:
        tokens: how many tokens are replaced by context vectors; 0: all of `words`.
        words: before the class name, whose embeddings the context vectors begin with; "": placeholders, and vectors
            drawn from a normal distribution of standard deviation .02.
        position: of the class name: at the end of the context, in its middle or in front of it.
        class_specific: whether each class has context vectors of its own.
        blocks: of the towers that have them at their entrance; 1: the first alone.
        vision: whether the image tower has some among its patches.
        ascent: step of gradient ascent on the context vectors after each step of the training attack, which has them
            meanwhile; 0: none.
    """

    tokens: int
    words: str = ""
    position: Position = "end"
    class_specific: bool = False
    blocks: int = 1
    vision: bool = False
    ascent: float = 0.0
