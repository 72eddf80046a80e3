"""The rows that go through the model in every pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from clipguard.attacks.base import Attack
from clipguard.attacks.engine.caseload import Start
from clipguard.attacks.engine.cycles import watch
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.rows import Index, Rows
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import ThreatModel

Key = tuple[int, torch.Size]  # stage, shape of the images


class Pool:
    """Rows by attack and by shape of the images. Its length is their number.

    Args:
        stages: the attacks, which units name by their position.
        eps_values: in pixel units, which units name by their position.
        threat: the ball.
        options: of the engine.
    """

    def __init__(
        self, stages: Sequence[Attack], eps_values: Sequence[float], threat: ThreatModel, options: EngineOptions
    ) -> None:
        self.stages, self.eps_values, self.threat, self.options = stages, eps_values, threat, options
        self._tables: dict[Key, list[Rows]] = {}
        self._wants_at_start: dict[int, bool] = {}  # by stage, once it is known

    def __len__(self) -> int:
        return sum(len(rows.units) for tables in self._tables.values() for rows in tables)

    def shapes(self) -> list[torch.Size]:
        """The shapes (C, H, W) of its images, each once."""
        return list(dict.fromkeys(shape for _, shape in self._tables))

    def pop(self, shape: torch.Size) -> dict[Key, Rows]:
        """Take out all rows of a shape."""
        keys = [key for key in self._tables if key[1] == shape]
        return {key: Rows.concatenate(self._tables.pop(key)) for key in keys}

    def add(self, key: Key, rows: Rows) -> None:
        """Put rows back."""
        self._tables.setdefault(key, []).append(rows)

    def launch(self, starts: Sequence[Start]) -> None:
        """Put in rows for units that begin."""
        groups: dict[Key, list[Start]] = defaultdict(list)
        for start in starts:
            groups[start.stage_and_run[0], start.work.x0.shape].append(start)
        for key, members in groups.items():
            self.add(key, self._first_rows(key[0], members))

    def keep(self, wanted: Callable[[Index], Index]) -> None:
        """Drop all rows but those at the positions that `wanted` tells for the units (B, 3) of each table."""
        for key in list(self._tables):
            kept = []
            for rows in self._tables.pop(key):
                index = wanted(rows.units)
                if len(index):
                    kept.append(rows if len(index) == len(rows.units) else rows.take(index))
            if kept:
                self._tables[key] = kept

    def _first_rows(self, stage: int, starts: Sequence[Start]) -> Rows:
        """The rows of an attack at the start of their runs."""
        state = self._first_state(self.stages[stage], starts)
        if stage not in self._wants_at_start:  # runs of an attack start alike
            self._wants_at_start[stage] = bool(self.stages[stage].wants_gradient(state).any())
        units = np.array([(s.number, s.eps_index, s.unit) for s in starts], dtype=np.int64)
        return Rows(state, units, np.full(len(starts), self._wants_at_start[stage]))

    def _first_state(self, attack: Attack, starts: Sequence[Start]) -> AttackState:
        works = [start.work for start in starts]
        runs = [start.stage_and_run[1] for start in starts]
        x0 = torch.stack([work.x0 for work in works])
        run = torch.tensor(runs)
        state = AttackState(run=run, step=torch.zeros_like(run))
        state["label"] = torch.tensor([work.example.label for work in works])
        state["eps"] = torch.tensor([self.eps_values[start.eps_index] for start in starts])
        clean = [self.options.first_margin(work.clean_margin) for work in works]
        state["best_margin"] = torch.tensor(clean)
        state = AttackState({name: column.to(x0.device, non_blocking=True) for name, column in state.items()})
        state |= {"x0": x0, "ranking": torch.stack([work.ranking for work in works])}
        if self.options.keep_images:
            state["best_x"] = x0.clone()
        state["target"] = attack.choose_target(state)
        images = [work.example.index for work in works]
        attack.start(state, self.threat, PerImageRandom(self.options.seed, attack.name, images, runs, x0.device))
        if self.options.stop_cycles and attack.memoryless:
            watch(state, attack.query(state))
        return state
