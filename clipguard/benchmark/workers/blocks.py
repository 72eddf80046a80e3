"""Which images a worker gets next: blocks that shrink towards the end, and what becomes of those whose worker died."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from clipguard.attacks.recipes import Recipe
from clipguard.core.errors import AttackError

MOST_ATTEMPTS = 3  # workers that a block may take with it before it is an error
CLEAN_BLOCK = 64  # images of a block at least where each takes one pass
FEWEST_ROWS = 16  # that a block begins with: passes of fewer are filled up with black images
MOST_IMAGES = 1024  # of a block: their pixels travel at once where a worker has none


@dataclass(frozen=True)
class Block:
    """Images by index, and how many workers died of them before one was done."""

    indices: Sequence[int]
    attempts: int = 0


class Blocks:
    """Images that wait for a worker, in blocks of `remaining / (2 * workers)` (guided self-scheduling, Polychronopoulos
    and Kuck 1987): a survivor costs a hundred times what a falling image does, so what is left over at the end must be
    small.

    Args:
        indices: of all images.
        workers: that share them.
        least: images of a block where there are as many.
    """

    def __init__(self, indices: Sequence[int], workers: int, least: int = 1) -> None:
        self._fresh = deque(indices)
        self._again: deque[Block] = deque()
        self._workers, self._least = workers, least

    @classmethod
    def of(cls, recipe: Recipe, indices: Sequence[int], workers: int, n_classes: int, n_eps: int) -> Blocks:
        """Blocks of the images that face a recipe at so many eps; see above."""
        runs = n_eps * sum(stage.runs(n_classes) for stage in recipe.stages)  # of an image, which go side by side
        return cls(indices, workers, -(-FEWEST_ROWS // runs) if runs else CLEAN_BLOCK)

    def __len__(self) -> int:
        return len(self._fresh) + len(self._again)

    def take(self) -> Block | None:
        """The next block, or None if no image waits."""
        if self._again:
            return self._again.popleft()
        if not self._fresh:
            return None
        size = min(max(self._least, -(-len(self._fresh) // (2 * self._workers))), MOST_IMAGES, len(self._fresh))
        return Block([self._fresh.popleft() for _ in range(size)])

    def put_back(self, block: Block) -> None:
        """Nothing was tried."""
        self._again.append(block)

    def give_back(self, block: Block, done: Collection[int]) -> None:
        """The worker of a block died: what was not done goes to another one, in halves if nothing was.

        Raises:
            AttackError: for images that took `MOST_ATTEMPTS` workers with them.
        """
        left = [index for index in block.indices if index not in done]
        attempts = block.attempts + 1 if len(left) == len(block.indices) else 0
        if attempts >= MOST_ATTEMPTS:
            which = f"image {left[0]}" if len(left) == 1 else f"images {', '.join(map(str, left))}"
            raise AttackError(
                f"{attempts} workers died while they attacked {which}, perhaps for want of memory: use a smaller "
                "`batch_size` or fewer `workers`, or leave them out."
            )
        half = -(-len(left) // 2) if attempts else len(left)
        self._again += [Block(part, attempts) for part in (left[:half], left[half:]) if part]
