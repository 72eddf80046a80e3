"""What an attack knows of the images it is at: a table of columns, one row an image and run."""

from __future__ import annotations

import torch
from torch import Tensor


def asking_is_free(x: Tensor) -> bool:
    """Whether a question about numbers makes nobody wait, since they are on the processor that asks."""
    return x.device.type == "cpu"


class AttackState(dict[str, Tensor]):
    """Equally long tensors by name. Attacks add columns of their own to those that the engine keeps for every row.

    - x0 (B, C, H, W): clean image
    - label, target (B,) int64: its class, and the class that the run aims at
    - eps (B,): in pixel units
    - ranking (B, classes - 1) int64: the other classes, from the largest clean logit to the smallest
    - run (B,) int64: which restart x target of this attack
    - step (B,) int64: within the run
    - best_margin (B,), best_x (B, C, H, W): the strongest image so far in this run; best_x only if images are kept
    """

    @property
    def n(self) -> int:
        """How many rows."""
        return len(self["x0"])

    def take(self, index: Tensor) -> AttackState:
        """The rows at these positions (int64), as a new table that shares no memory with this one."""
        return AttackState({name: value.index_select(0, index) for name, value in self.items()})

    @staticmethod
    def concatenate(tables: list[AttackState]) -> AttackState:
        """One table of tables with the same columns."""
        if len(tables) == 1:
            return tables[0]
        return AttackState({name: torch.cat([t[name] for t in tables]) for name in tables[0]})
