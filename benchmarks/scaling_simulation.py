"""How do blocks of images share out over 8 and over 1,000 workers, and where does it stop scaling?

`python scaling_simulation.py` plays runs event by event: workers take blocks from one list, attack the images of a
block side by side in a pool of rows as the engine does, fail, and start again. Seconds of a pass are those of
`results/attack_speed.json` and `allocator.json`, of a start those of `startup.json`; the accelerator is an assumption
that says so. 30 % of the images survive and cost 100 times what the others cost. Nothing is attacked here. Writes
`results/scaling_simulation.json`, in about ten minutes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from common import RESULTS, provenance, save

FALLEN, RATIO, STANDING = 10.1, 100, 0.3  # passes of an image that falls, what survivors cost more, their share
DEPTH = 101  # passes that follow one another in a survivor: one run of APGD; its ten runs may go side by side
LONGEST = 5.0  # of a heavy tail: times what a survivor costs otherwise, for the iterations of an attack are bounded
FLUSH = 5.0  # seconds between segments of the store
FAILURES = 3600.0  # seconds between failures of a worker
Rule = Callable[[int, int, int], int]  # images that are left, workers, blocks given so far -> images of the next block


@dataclass(frozen=True)
class Machine:
    """What a worker's passes take.

    Attributes:
        row: seconds of a row of a full pass, forward and gradient.
        rows: of a full pass.
        least: a pass of fewer rows takes as long as one of so many.
        start: seconds until a worker that was started takes its first block.
        source: where the numbers are from.
    """

    row: float
    rows: int
    least: int
    start: float
    source: str


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
        workers: how many.
        images: how many.
        rule: how large the next block is.
        ahead: a worker takes the next block once its passes have fewer than `least` rows; else when it has done all.
        failures: whether workers fail.
        keeps: whether what a failed worker had stored counts; else its block is done again from the start.
        tails: whether survivors' costs have a heavy tail (Pareto 2.5, cut at `LONGEST`), and workers' speeds differ, by
            10 % and 2 % of them by a factor of three.
        pieces: parts that a survivor is taken apart into, each an image of its own for whoever attacks it.
        request: seconds that giving out a block takes, one after the other for all workers.
        block: seconds that a worker spends on a block beside its passes.
    """

    workers: int
    images: int
    rule: Rule
    ahead: bool = False
    failures: bool = False
    keeps: bool = True
    tails: bool = False
    pieces: int = 1
    request: float = 0.001
    block: float = 0.02


def fixed(size: int) -> Rule:
    return lambda _left, _workers, _given: size


def guided(divisor: float, least: int = 1) -> Rule:
    """Guided self-scheduling: a share of what is left, the smaller the less that is."""
    return lambda left, workers, _given: max(least, int(left / (divisor * workers)))


def factoring(images: int) -> Rule:
    """Rounds of one block a worker, all alike, of half of what is left together (Hummel et al. 1992)."""

    def rule(_left: int, workers: int, given: int) -> int:
        return max(1, math.ceil(images * 0.5 ** (given // workers + 1) / workers))

    return rule


def rules(images: int, workers: int) -> dict[str, Rule]:
    return {
        "static: images / workers": fixed(math.ceil(images / workers)),
        "fixed: 16": fixed(16),
        "fixed: 4": fixed(4),
        "fixed: 1": fixed(1),
        "guided: left / workers": guided(1),
        "guided: left / (2 workers)": guided(2),
        "guided: left / (3 workers)": guided(3),
        "guided: left / (4 workers)": guided(4),
        "guided: left / (8 workers)": guided(8),
        "factoring": factoring(images),
    }


@dataclass
class Image:
    """Work in a pool: passes that follow one another, and how many rows it fills in each."""

    depth: float
    rows: float

    @property
    def work(self) -> float:
        return self.depth * self.rows


def make_images(setting: Setting, draw: np.random.Generator) -> list[Image]:
    """Images in random order. Those that fall take one row at a time, survivors up to ten."""
    images = []
    survives = draw.random(setting.images) < STANDING
    tails = np.minimum(draw.pareto(2.5, setting.images) * 1.5, LONGEST)
    fallen = draw.exponential(FALLEN, setting.images)
    for alive, tail, passes in zip(survives, tails, fallen, strict=True):
        if alive:
            factor = tail if setting.tails else 1.0
            part = FALLEN * RATIO * factor / setting.pieces
            depth = DEPTH * factor
            images += [Image(depth, part / depth) for _ in range(setting.pieces)]
        else:
            images.append(Image(max(1.0, passes), 1.0))
    return images


@dataclass
class Worker:
    """A pool of images that advance side by side, in virtual time: passes that each of them has had."""

    speed: float
    pool: list[tuple[float, int, Image]] = field(default_factory=list)  # by the virtual time at which it is done
    waiting: deque[Image] = field(default_factory=deque)  # of its block, for a place in the pool
    virtual: float = 0.0
    rows: float = 0.0
    at: float = 0.0  # the moment up to which it is played
    unsaved: list[Image] = field(default_factory=list)
    flushed: float = 0.0
    fails: float = math.inf
    epoch: int = 0  # events of earlier ones are void
    idle_since: float | None = None


class Run:
    """A run, played to its end."""

    def __init__(self, machine: Machine, setting: Setting, seed: int) -> None:
        self.machine, self.setting = machine, setting
        self.draw = np.random.default_rng(seed)
        images = make_images(setting, self.draw)
        self.work = sum(image.work for image in images)
        self.longest = max(image.depth for image in images)
        self.left = deque(images)
        self.again: deque[Image] = deque()
        self.given, self.server, self.number = 0, 0.0, 0
        self.lost = self.restarts = 0.0
        self.undone = len(images)
        self.events: list[tuple[float, int, int, int]] = []  # moment, number, worker, epoch
        speeds = np.ones(setting.workers)
        if setting.tails:
            speeds = np.exp(self.draw.normal(0, 0.1, setting.workers))
            speeds[self.draw.random(setting.workers) < 0.02] /= 3
        self.workers = [Worker(float(speed)) for speed in speeds]

    def play(self) -> dict[str, float]:
        """Seconds, and shares of all workers' time."""
        for number, worker in enumerate(self.workers):
            worker.fails = self.draw.exponential(FAILURES) if self.setting.failures else math.inf
            self._take(number, 0.0)
        end = 0.0
        while self.undone and self.events:
            moment, _, number, epoch = heapq.heappop(self.events)
            worker = self.workers[number]
            if epoch != worker.epoch:
                continue
            if worker.fails <= moment:
                self._fail(number, worker.fails)
                continue
            self._advance(worker, moment)
            end = max(end, moment)
            self._go_on(number, moment)
        total = self.setting.workers * end
        idle = sum(end - (end if w.idle_since is None else w.idle_since) for w in self.workers)
        speeds = sum(worker.speed for worker in self.workers)
        return {
            "seconds": end,
            "idle_at_the_tail": idle / total,
            "efficiency": self.work * self.machine.row / speeds / end,
            "lost": self.lost / total,
            "restarting": self.restarts / total,
            "failures": self.restarts / self.machine.start,
            "blocks": self.given,
        }

    def _rows(self, worker: Worker) -> float:
        return min(worker.rows, self.machine.rows)

    def _pass(self, worker: Worker) -> float:
        return self.machine.row * max(self._rows(worker), self.machine.least) / worker.speed

    def _advance(self, worker: Worker, moment: float) -> None:
        """Play a worker up to a moment, at which at most one image is done."""
        if worker.pool:
            share = self._rows(worker) / worker.rows
            worker.virtual += max(0.0, moment - worker.at) / self._pass(worker) * share
        worker.at = moment
        while worker.pool and worker.pool[0][0] <= worker.virtual + 1e-5:  # passes; moments have so many digits
            _, _, image = heapq.heappop(worker.pool)
            worker.rows -= image.rows
            worker.unsaved.append(image)
            self.undone -= 1
        if worker.unsaved and moment - worker.flushed > FLUSH:
            worker.unsaved, worker.flushed = ([] if self.setting.keeps else worker.unsaved), moment

    def _go_on(self, number: int, moment: float) -> None:
        """Fill the pool up from the block; take another if it is time; and wait for the next image to be done."""
        worker = self.workers[number]
        while worker.waiting and worker.rows < self.machine.rows:
            self._enter(worker, worker.waiting.popleft())
        low = worker.rows < self.machine.least if self.setting.ahead else not worker.pool
        if not worker.waiting and low and (self.left or self.again):
            self._take(number, moment)
        elif worker.pool:
            self._wait(number)
        elif worker.idle_since is None:  # nothing is left but what others are at
            if not self.setting.keeps:
                worker.unsaved = []
            worker.idle_since = moment
            worker.epoch += 1

    def _enter(self, worker: Worker, image: Image) -> None:
        self.number += 1
        heapq.heappush(worker.pool, (worker.virtual + image.depth, self.number, image))
        worker.rows += image.rows

    def _wait(self, number: int) -> None:
        """An event when the first image of the pool is done."""
        worker = self.workers[number]
        passes = (worker.pool[0][0] - worker.virtual) * worker.rows / self._rows(worker)
        self._event(number, worker.at + max(0.0, passes) * self._pass(worker))

    def _event(self, number: int, moment: float) -> None:
        self.number += 1
        self.workers[number].epoch += 1
        heapq.heappush(self.events, (moment, self.number, number, self.workers[number].epoch))

    def _take(self, number: int, moment: float) -> None:
        """The next block, from whoever gives them out, one request after the other."""
        worker, setting = self.workers[number], self.setting
        if not setting.keeps:
            worker.unsaved = []  # a block that is done is done
        remaining = len(self.left) + len(self.again)
        size = min(remaining, setting.rule(remaining, setting.workers, self.given))
        for _ in range(size):
            worker.waiting.append(self.again.popleft() if self.again else self.left.popleft())
        self.given += 1
        self.server = max(self.server, moment) + setting.request
        if not worker.pool:
            worker.at = self.server + setting.block
            self._event(number, worker.at)
        else:
            self._go_on(number, moment)

    def _fail(self, number: int, moment: float) -> None:
        """What was in the pool and what was not stored is done again; the worker starts again."""
        worker = self.workers[number]
        self._advance(worker, max(moment, worker.at))
        seconds = self.machine.row / worker.speed
        partly = sum((image.depth - (done - worker.virtual)) * image.rows for done, _, image in worker.pool)
        self.lost += seconds * (partly + sum(image.work for image in worker.unsaved))
        back = [*(image for _, _, image in worker.pool), *worker.waiting]
        self.undone += len(worker.unsaved)
        self.again.extend([*back, *worker.unsaved])
        self.restarts += self.machine.start
        fresh = Worker(worker.speed, at=moment + self.machine.start, epoch=worker.epoch)
        fresh.flushed = fresh.at
        fresh.fails = fresh.at + self.draw.exponential(FAILURES)
        self.workers[number] = fresh
        self._event(number, fresh.at)
        for other, idle in enumerate(self.workers):  # there is work again for whoever waits
            if idle.idle_since is not None and self.again:
                idle.idle_since, idle.at = None, max(idle.at, moment)
                self._take(other, idle.at)


def machines() -> dict[str, Machine]:
    """Measured ones of one core, and an accelerator that is assumed."""
    speed = json.loads((RESULTS / "attack_speed.json").read_text())["robust, autoattack-fast, 64 images"]
    tiny = statistics.median(run["seconds"] / run["forward"] for run in speed["runs"]["exact"])
    vit = next(
        row for row in json.loads((RESULTS / "allocator.json").read_text())["results"] if row["model"] == "ViT-B-32"
    )
    row = vit["keep"]["seconds"] / vit["passes"] / vit["batch_size"]
    start = json.loads((RESULTS / "startup.json").read_text())["results"]["bench"]["wall_seconds"][0]
    return {
        "tiny, one core": Machine(tiny, 64, 1, start, "attack_speed.json and startup.json, measured"),
        "ViT-B-32, one core": Machine(row, 4, 1, start, "allocator.json and startup.json, measured"),
        "ViT-L/14, an accelerator": Machine(
            0.324 / 300, 128, 16, 60.0, "assumed: 300 TFLOP/s, a pass of less than 16 rows as long as one of 16"
        ),
    }


def several(machine: Machine, setting: Setting, seeds: Iterable[int]) -> dict[str, Any]:
    """Median of each number, and the worst idle share."""
    runs = [Run(machine, setting, seed).play() for seed in seeds]
    found: dict[str, Any] = {name: _short(statistics.median(run[name] for run in runs)) for name in runs[0]}
    return found | {"worst_idle": _short(max(run["idle_at_the_tail"] for run in runs)), "seeds": len(runs)}


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def compare_rules(workers: int, images: int, seeds: int, **options: Any) -> list[dict[str, Any]]:
    """Every rule on every machine, blocks one after the other and ahead of time."""
    rows = []
    for name, machine in machines().items():
        for rule, size in rules(images, workers).items():
            for ahead in (False, True) if machine.least > 1 else (False,):
                setting = Setting(workers, images, size, ahead=ahead, **options)
                found = several(machine, setting, range(seeds))
                rows.append({"machine": name, "rule": rule, "ahead": ahead, **found})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def scaling(best: float, images: Iterable[int], workers: Iterable[int], seeds: int) -> list[dict[str, Any]]:
    """How much faster more workers are, with failures and heavy tails."""
    rows = []
    for name, machine in machines().items():
        for n in images:
            for count in workers:
                for pieces in (1, 10) if count * 10 >= n else (1,):  # elsewhere there are images enough
                    setting = Setting(count, n, guided(best), machine.least > 1, failures=True, tails=True)
                    found = several(machine, replace(setting, pieces=pieces), range(seeds))
                    rows.append({"machine": name, "images": n, "workers": count, "pieces": pieces, **found})
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def failures(best: float, seeds: int) -> list[dict[str, Any]]:
    """What failures cost with and without a store, 1,000 workers on 50,000 images."""
    rows = []
    for name, machine in machines().items():
        for keeps in (True, False):
            for rule in ("static", "guided"):
                size = guided(best) if rule == "guided" else fixed(50)
                setting = Setting(1000, 50_000, size, machine.least > 1, failures=True, keeps=keeps)
                found = several(machine, setting, range(seeds))
                rows.append({"machine": name, "rule": rule, "store": keeps, **found})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each rule over 8 workers; a quarter elsewhere")
    parser.add_argument("--divisor", type=float, default=2.0, help="of the guided rule beyond the comparison")
    args = parser.parse_args()
    few = max(1, args.seeds // 4)
    content = {
        "assumptions": {
            "passes_of_an_image_that_falls": FALLEN,
            "survivors_cost": RATIO,
            "share_of_survivors": STANDING,
            "seconds_between_failures_of_a_worker": FAILURES,
            "seconds_between_segments": FLUSH,
            "longest_of_a_heavy_tail": LONGEST,
            "seconds_of_a_request": Setting.request,
            "seconds_of_a_block": Setting.block,
            "machines": {name: vars(machine) for name, machine in machines().items()},
        },
        "rules_8_workers_1000_images": compare_rules(8, 1000, args.seeds),
        "rules_8_workers_1000_images_heavy_tails": compare_rules(8, 1000, args.seeds, tails=True),
        "rules_1000_workers_50000_images": compare_rules(1000, 50_000, few, failures=True, tails=True),
        "scaling": scaling(args.divisor, (1000, 10_000, 50_000), (8, 64, 256, 1000), few),
        "failures": failures(args.divisor, few),
        **provenance(),
    }
    save("scaling_simulation", content)


if __name__ == "__main__":
    main()
