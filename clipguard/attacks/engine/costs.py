"""What attacks cost: passes, counted in images, and seconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Cost:
    """Passes are counted in images: one forward pass of a batch of 64 is 64.

    `skipped` are forward passes that were not needed, since a run came back to a point.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    skipped: int = 0


class Costs(defaultdict[str, Cost]):
    """Costs by attack.

    Args:
        eot: how often each pass is made.
    """

    def __init__(self, eot: int = 1) -> None:
        super().__init__(Cost)
        self.eot = eot

    @contextmanager
    def charged(self, forward: Mapping[str, int], backward: Mapping[str, int]) -> Iterator[None]:
        """Charge a pass to the attacks whose images it carries; its time is shared by their number of images.

        Args:
            forward: images by attack.
            backward: images by attack that a gradient is taken of.
        """
        started = time.perf_counter()
        yield
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # the caller looks at the results next, so this waits for nothing more
        seconds = time.perf_counter() - started
        total = sum(forward.values())
        for name, n in forward.items():
            self[name].forward += n * self.eot
            self[name].seconds += seconds * n / total
        for name, n in backward.items():
            self[name].backward += n * self.eot
