"""The table of rows that attacks keep their state in."""

from __future__ import annotations

import torch
from torch import Tensor


class AttackState(dict[str, Tensor]):
    """A table of equally long tensors."""

    @property
    def n(self) -> int:
        """How many rows."""
        return len(self["item"])

    def take(self, index: Tensor) -> AttackState:
        """The rows at these positions (int64), as a new table that shares no memory with this one."""
        return AttackState({name: value.index_select(0, index) for name, value in self.items()})

    @staticmethod
    def concatenate(tables: list[AttackState]) -> AttackState:
        """One table of tables with the same columns."""
        if len(tables) == 1:
            return tables[0]
        return AttackState({name: torch.cat([t[name] for t in tables]) for name in tables[0]})
