"""Which images every batch of a run takes: from seed and step alone, so that a run can be resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.training_data import Indices
from clipguard.finetuning.processes.team import ALONE, Team


@dataclass(frozen=True)
class ResumableBatchSampler:
    """Batches of (epoch, index): epoch after epoch of seeded shuffles, cut into steps, those into batches.

    A step takes the same images however they are divided among batches and processes.

    Args:
        train: (N,) indices of the training images.
        seed: of the shuffles.
        batch_size: images of one batch, over all processes.
        accumulate: batches a step.
        steps: where the run ends.
        start: steps that were done before.
        team: this process among those that share every batch.
    """

    train: Indices
    seed: int
    batch_size: int
    accumulate: int
    steps: int
    start: int = 0
    team: Team = ALONE

    @classmethod
    def of_run(cls, config: FinetuneConfig, train: Indices, team: Team = ALONE) -> ResumableBatchSampler:
        """That of a run's settings; a length in epochs becomes one in steps.

        Raises:
            FinetuneError: if a batch has fewer images than there are processes, or with `fsdp` cannot be shared evenly.
        """
        steps = config.steps or 0
        config.check_share(team.size)
        sampler = cls(train, config.seed, config.images_per_batch, config.accumulate, steps, team=team)
        if config.epochs is None:
            return sampler
        return replace(sampler, steps=max(1, round(config.epochs * len(train) / sampler.images_per_step)))

    @property
    def images_per_step(self) -> int:
        """Over all passes and processes."""
        return self.batch_size * self.accumulate

    @property
    def images_per_process(self) -> int:
        """Of one batch, at most: parts differ by one where it cannot be divided evenly."""
        return -(-self.batch_size // self.team.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, self.train
        own = self.team.part(self.batch_size)
        for step in range(self.start, self.steps):
            for number in range(self.accumulate):
                first = step * self.images_per_step + number * self.batch_size
                batch = []
                for position in range(first + own.start, first + own.stop):
                    if position // len(order) != epoch:
                        epoch = position // len(order)
                        order = np.random.default_rng([self.seed, epoch]).permutation(self.train)
                    batch.append((epoch, int(order[position % len(order)])))
                yield batch
