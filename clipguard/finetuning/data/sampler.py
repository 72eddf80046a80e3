"""Which images every batch of a run takes: from seed and step alone, so that a run can be resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.training_data import Indices


@dataclass(frozen=True)
class ResumableBatchSampler:
    """Batches of (epoch, index): epoch after epoch of seeded shuffles, cut into steps, those into batches.

    A step takes the same images however they are divided among batches and processes.

    Args:
        train: (N,) indices of the training images.
        seed: of the shuffles.
        batch_size: images of one batch of one process.
        accumulate: batches a step.
        steps: where the run ends.
        start: steps that were done before.
        process, processes: this process, from 0, and how many there are.
    """

    train: Indices
    seed: int
    batch_size: int
    accumulate: int
    steps: int
    start: int = 0
    process: int = 0
    processes: int = 1

    @classmethod
    def of_run(cls, config: FinetuneConfig, train: Indices, process: int, processes: int) -> ResumableBatchSampler:
        """That of a run's settings; a length in epochs becomes one in steps."""
        steps = config.steps or 0
        sampler = cls(
            train, config.seed, config.images_per_batch, config.accumulate, steps, process=process, processes=processes
        )
        if config.epochs is None:
            return sampler
        return replace(sampler, steps=max(1, round(config.epochs * len(train) / sampler.images_per_step)))

    @property
    def images_per_step(self) -> int:
        """Over all passes and processes."""
        return self.batch_size * self.accumulate * self.processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, self.train
        for step in range(self.start, self.steps):
            for number in range(self.accumulate):
                first = step * self.images_per_step + (number * self.processes + self.process) * self.batch_size
                batch = []
                for position in range(first, first + self.batch_size):
                    if position // len(order) != epoch:
                        epoch = position // len(order)
                        order = np.random.default_rng([self.seed, epoch]).permutation(self.train)
                    batch.append((epoch, int(order[position % len(order)])))
                yield batch
