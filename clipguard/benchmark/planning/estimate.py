"""What a run would take, as numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clipguard.core.records.provenance import Machine
from clipguard.core.records.run import DefenseRecord

SCHEMA = 1


@dataclass(frozen=True)
class Span:
    """A quantity that depends on how the images fare.

    Attributes:
        least: if every image falls at once.
        expected: if images fare as those of the pilot; None without one.
        most: if every image survives every attack at every eps.
    """

    least: float
    expected: float | None
    most: float

    def __add__(self, other: Span) -> Span:
        unknown = self.expected is None or other.expected is None
        expected = None if unknown else (self.expected or 0) + (other.expected or 0)
        return Span(self.least + other.least, expected, self.most + other.most)

    def times(self, factor: float) -> Span:
        """All three, so many times."""
        expected = None if self.expected is None else factor * self.expected
        return Span(factor * self.least, expected, factor * self.most)

    def rounded(self, digits: int | None) -> dict[str, float | None]:
        """Plain JSON types; whole numbers where `digits` is None."""
        return {name: None if value is None else round(value, digits) for name, value in asdict(self).items()}


def total(spans: Iterable[Span]) -> Span:
    """Their sum."""
    return sum(spans, Span(0, 0, 0))


def total_of(stages: Mapping[str, Mapping[str, float]] | None, name: str) -> float | None:
    """What all attacks take together of `Work.stages`, where it is known: "forward", "backward" or "seconds"."""
    return None if stages is None else sum(cost[name] for cost in stages.values())


@dataclass(frozen=True)
class Reckoned:
    """What is left of an attack on a data set, reckoned; attributes as of `Work`."""

    passes: Span
    seconds: Span
    longest: float
    stages: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Work:
    """What an attack would take on the images of a data set that are left, at every eps.

    Attributes:
        model, dataset, attack: their names.
        images: that the plan takes of the data set.
        left: images whose results are not all known after the pilot.
        asked: results, one for each image and eps, and one for the clean image.
        stored: of these, what the store knows after the pilot.
        pilot: images that were attacked for the estimate.
        passes: forward, in images, as `run.costs` counts them.
        seconds: with one worker.
        longest: seconds of the image that takes longest, as far as the pilot tells.
        stages: expected forward and backward passes and seconds by attack; empty without a pilot.
    """

    model: str
    dataset: str
    attack: str
    images: int
    left: int
    asked: int
    stored: int
    pilot: int
    passes: Span
    seconds: Span
    longest: float
    stages: dict[str, dict[str, float]]

    def shared(self, workers: int) -> Span:
        """Seconds until the last of these workers is done.

        Images go to whoever is free, so the last one is done at most the longest image's time, less its share, after
        an even division (Graham 1969).
        """
        busy = max(1, min(workers, self.left))
        tail = (1 - 1 / busy) * self.longest
        return self.seconds.times(1 / busy) + Span(0, tail, tail)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        rounded = {"passes": self.passes.rounded(None), "seconds": self.seconds.rounded(2)}
        return asdict(self) | rounded | {"longest": round(self.longest, 3)}


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        cells: of its table, clean ones included.
        images: all that are evaluated, each data set's once.
        work: by model, data set and attack.
        probes: passes of the sanity checks that take some of their own.
        probe_seconds: what these take.
        setup_seconds: of reading models and images here, which every run begins with.
        workers: that share the work.
        batch_size: rows a pass at most.
        memory: peak MiB of a worker: `host`, and `gpu` where there is one; None where the system does not tell.
        machine: where passes were measured.
        pilot: images, forward passes and seconds of the pilots, and whether the store has their results.
        price: of a worker an hour; None: not asked.
        defense: of the run's models, as its result would have it; None without one.
    """

    cells: int
    images: int
    work: list[Work]
    probes: Span
    probe_seconds: Span
    setup_seconds: float
    workers: int
    batch_size: int | None
    memory: dict[str, float | None]
    machine: Machine
    pilot: dict[str, float]
    price: float | None = None
    defense: DefenseRecord | None = None

    @property
    def passes(self) -> Span:
        """Forward passes, in images, of all that is left to do."""
        return total([*(work.passes for work in self.work), self.probes])

    @property
    def seconds(self) -> Span:
        """Of all workers together, without what comes before the first pass."""
        return total([*(work.seconds for work in self.work), self.probe_seconds])

    @property
    def wall_seconds(self) -> Span:
        """From the start of the command to its end, with all workers."""
        shared = total([*(work.shared(self.workers) for work in self.work), self.probe_seconds])
        return shared + Span(*[self.setup_seconds] * 3)

    @property
    def cost(self) -> Span | None:
        """In the currency of the price: every worker is paid from start to end."""
        return None if self.price is None else self.wall_seconds.times(self.price * self.workers / 3600)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            **({} if self.defense is None else {"defense": self.defense}),
            "cells": self.cells,
            "images": self.images,
            "results": {
                "asked": sum(work.asked for work in self.work),
                "stored": sum(work.stored for work in self.work),
            },
            "passes": self.passes.rounded(None),
            "seconds": self.seconds.rounded(2),
            "workers": self.workers,
            "wall_seconds": self.wall_seconds.rounded(2),
            "setup_seconds": round(self.setup_seconds, 2),
            "price": self.price,
            "cost": None if self.cost is None else self.cost.rounded(4),
            "batch_size": self.batch_size,
            "memory": self.memory,
            "machine": self.machine,
            "pilot": self.pilot,
            "probes": {"passes": self.probes.rounded(None), "seconds": self.probe_seconds.rounded(2)},
            "work": [work.to_dict() for work in self.work],
        }

    def to_json(self) -> str:
        """Strict JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)
