"""Counts noisy copies of images: passes are full of copies of as many images as it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen, require_finite
from clipguard.certification.noise import CopyNoise
from clipguard.certification.smoothing import SmoothingTest

STAGE = "certify"  # of the costs


@dataclass(frozen=True)
class Counted:
    """How one image fared.

    Attributes:
        example: the image.
        base: the class that it is taken for without noise.
        selected: the most frequent class of the first noisy copies; of several, the one with the smallest number.
        hits: later copies that were taken for it too, until there was no hope.
    """

    example: Example
    base: int
    selected: int
    hits: int


class _Case:
    """An image whose copies are being counted."""

    def __init__(self, example: Example, base: int, test: SmoothingTest, noise: CopyNoise) -> None:
        self.example, self.base = example, base
        self._test, self._noise = test, noise
        self.missing = test.selection + test.samples  # copies that were not drawn yet
        self._predictions: list[npt.NDArray[np.int64]] = []

    def copies(self, n: int) -> Tensor:
        """The next n noisy copies (n, C, H, W)."""
        self.missing -= n
        image = self.example.image.float()
        return image + self._test.sigma * self._noise.normal(n, image.shape)

    def add(self, predictions: npt.NDArray[np.int64]) -> Counted | None:
        """Take what the next copies were taken for; gives the outcome once it is certain.

        An outcome follows from the copies in their order, however many a pass had.
        """
        self._predictions.append(predictions)
        test, known = self._test, np.concatenate(self._predictions)
        self._predictions = [known]
        if len(known) <= test.selection:
            return None
        selected = int(np.bincount(known[: test.selection]).argmax())
        hit = known[test.selection :] == selected
        misses = np.flatnonzero(~hit)
        if len(misses) >= test.hopeless_misses:
            hits = int(misses[test.hopeless_misses - 1]) + 1 - test.hopeless_misses
        elif len(hit) == test.samples:
            hits = int(hit.sum())
        else:
            return None
        return Counted(self.example, self.base, selected, hits)


class Smoother:
    """Certifies a stream of images under one test.

    Args:
        evaluator: of the base classifier, in float32.
        test: what is counted.
        seed: of the noise.
    """

    def __init__(self, evaluator: Evaluator, test: SmoothingTest, seed: int) -> None:
        self.evaluator, self.test, self.seed = evaluator, test, seed

    def run(self, examples: Iterable[Example]) -> Iterator[Counted]:
        """Outcomes as images finish.

        Raises:
            AttackError: for images outside [0,1], labels that are no class, and a model in train mode.
            NonFiniteError: for NaN.
        """
        waiting = self._cases(iter(examples))
        active: deque[_Case] = deque()
        with frozen(self.evaluator.model):
            while True:
                drawn = self._draw(active, waiting)
                if not drawn:
                    return
                for case, predictions in self._classify(drawn):
                    counted = case.add(predictions)
                    if counted is not None:
                        active.remove(case)
                        yield counted

    def _cases(self, examples: Iterator[Example]) -> Iterator[_Case]:
        """Cases with their clean predictions, for which a batch of images shares a pass."""
        while batch := list(islice(examples, self.evaluator.batch_size)):
            for _, group in groupby(batch, key=lambda example: example.image.shape):
                clean = self.evaluator.predict(list(group))
                for example, prediction in zip(clean.examples, clean.predictions, strict=True):
                    device = example.image.device
                    noise = CopyNoise(self.seed, example.index, self.test.sigma, device)
                    yield _Case(example, prediction, self.test, noise)

    def _draw(self, active: deque[_Case], waiting: Iterator[_Case]) -> list[tuple[_Case, Tensor]]:
        """Copies for one full pass, of one shape: of the images under way, and of as many new ones as it takes."""
        room, number = self.evaluator.batch_size, 0
        drawn: list[tuple[_Case, Tensor]] = []
        while room > 0:
            if number == len(active):
                fresh = next(waiting, None)
                if fresh is None:
                    break
                active.append(fresh)
            case = active[number]
            number += 1
            if drawn and case.example.image.shape != drawn[0][0].example.image.shape:
                break
            n = min(room, case.missing)
            room -= n
            drawn.append((case, case.copies(n)))
        return drawn

    def _classify(self, drawn: list[tuple[_Case, Tensor]]) -> Iterator[tuple[_Case, npt.NDArray[np.int64]]]:
        """What each copy is taken for, by case."""
        sizes = [len(copies) for _, copies in drawn]
        with self.evaluator.costs.charged({STAGE: sum(sizes)}, {}):
            logits = self.evaluator.verify(torch.cat([copies for _, copies in drawn]))
            predictions = logits.argmax(dim=1).cpu().numpy()
        cases = np.repeat(np.arange(len(drawn)), sizes)
        require_finite(logits, lambda row: drawn[cases[row]][0].example.index, "on a noisy copy of an image")
        parts = np.split(predictions, np.cumsum(sizes)[:-1])
        yield from zip((case for case, _ in drawn), parts, strict=True)
