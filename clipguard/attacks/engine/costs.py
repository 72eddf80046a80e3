"""What attacks cost: passes, counted in images, and seconds."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
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

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.seconds + other.seconds,
            self.skipped + other.skipped,
        )


class Costs(defaultdict[str, Cost]):
    """Costs by attack.

    Args:
        eot: how often each pass is made.
        on_gpu: whether a GPU works while the program goes on: its seconds are then read afterwards.

    Attributes:
        sizes: passes by the attacks whose images they carried, joined by +, and the number of these images.
    """

    def __init__(self, eot: int = 1, *, on_gpu: bool = False) -> None:
        super().__init__(Cost)
        self.eot, self.on_gpu = eot, on_gpu
        self.sizes: Counter[tuple[str, int]] = Counter()
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event, Mapping[str, int]]] = deque()

    @property
    def passes(self) -> int:
        """Forward passes so far, in images; asks no device."""
        return sum(cost.forward for cost in self.values())

    def settled(self) -> dict[str, Cost]:
        """All costs, with the seconds of passes that still run, which waits for them."""
        if self._running:
            self._running[-1][1].synchronize()
        self._read_seconds()
        return dict(self)

    @contextmanager
    def charged(self, forward: Mapping[str, int], backward: Mapping[str, int]) -> Iterator[None]:
        """Charge a pass to the attacks whose images it carries; its time is shared by their number of images.

        Args:
            forward: images by attack.
            backward: images by attack that a gradient is taken of.
        """
        if self.on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._running.append((start, end, forward))
            self._read_seconds()
        else:
            started = time.perf_counter()
            yield
            self._share(time.perf_counter() - started, forward)
        self.sizes["+".join(forward), sum(forward.values())] += 1
        for name, n in forward.items():
            self[name].forward += n * self.eot
        for name, n in backward.items():
            self[name].backward += n * self.eot

    def _read_seconds(self) -> None:
        """Of the passes that are over; waits for none."""
        while self._running and self._running[0][1].query():  # type: ignore[no-untyped-call]
            start, end, images = self._running.popleft()
            self._share(start.elapsed_time(end) / 1e3, images)

    def _share(self, seconds: float, images: Mapping[str, int]) -> None:
        """A pass took so long: each attack has its part by images."""
        total = sum(images.values())
        for name, n in images.items():
            self[name].seconds += seconds * n / total
