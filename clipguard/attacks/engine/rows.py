"""Rows of an attack, and what is told of them to the processor that runs the engine.

A GPU works while the processor prepares what comes next, and every question to it makes the one wait for the other. So
the engine asks twice a step, for all rows at once, and keeps on its own side what it knows of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipguard.attacks.state import AttackState

Index = npt.NDArray[np.int64]  # positions of rows


def on_device(index: Index, device: torch.device) -> Tensor:
    """The same positions as a tensor, without waiting for the device."""
    return torch.from_numpy(index).to(device, non_blocking=True)


@dataclass
class Rows:
    """Rows of one attack: their table on the device, and what is known of them without asking it.

    Attributes:
        state: B rows.
        units: (B, 3) int64: image, eps and unit in the engine's lists (see schedule.py).
        wants: (B,) bool, which of them want a gradient at their next point.
    """

    state: AttackState
    units: Index
    wants: npt.NDArray[np.bool_]

    def take(self, index: Index) -> Rows:
        """The rows at these positions, as a new table that shares no memory with this one."""
        state = self.state.take(on_device(index, self.state["x0"].device))
        return Rows(state, self.units[index], self.wants[index])

    @staticmethod
    def concatenate(tables: Sequence[Rows]) -> Rows:
        """One table of tables with the same columns."""
        if len(tables) == 1:
            return tables[0]
        state = AttackState.concatenate([rows.state for rows in tables])
        units, wants = (np.concatenate(column) for column in zip(*((r.units, r.wants) for r in tables), strict=True))
        return Rows(state, units, wants)


def read(tables: Sequence[Tensor]) -> list[npt.NDArray[np.float64]]:
    """Tables of numbers (columns, rows) from the device, in one transfer."""
    numbers = torch.cat([table.double().flatten() for table in tables]).cpu().numpy()
    ends = np.cumsum([table.numel() for table in tables])[:-1]
    return [part.reshape(table.shape) for part, table in zip(np.split(numbers, ends), tables, strict=True)]
