"""Which images a worker gets next, and what becomes of those whose worker died."""

from __future__ import annotations

import numpy as np
import pytest

from clipguard.benchmark.shard import Shard
from clipguard.benchmark.workers.blocks import MOST_ATTEMPTS, MOST_IMAGES, Block, Blocks
from clipguard.core.errors import AttackError, ClipguardError


def taken(blocks: Blocks) -> list[list[int]]:
    found = []
    while block := blocks.take():
        found.append(list(block.indices))
    return found


def test_blocks_shrink_to_single_images_and_hold_each_image_once() -> None:
    blocks = taken(Blocks(range(200), 8))
    sizes = [len(block) for block in blocks]
    assert sizes[0] == 13
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-8:] == [1] * 8
    assert [index for block in blocks for index in block] == list(range(200))


def test_a_block_has_as_many_images_as_make_a_pass_and_no_more_than_can_travel() -> None:
    assert [len(block) for block in taken(Blocks(range(100), 4, least=64))] == [64, 36]
    assert len(taken(Blocks(range(100_000), 1))[0]) == MOST_IMAGES


def test_what_was_done_is_not_done_again() -> None:
    blocks = Blocks([], 2)
    blocks.give_back(Block([1, 2, 3, 4]), {2})
    assert blocks.take() == Block([1, 3, 4])
    assert len(blocks) == 0


def test_an_image_that_kills_its_worker_three_times_is_named_alone() -> None:
    blocks = Blocks([], 1)
    blocks.give_back(Block(list(range(8))), ())
    finished: list[int] = []

    def work() -> None:
        while block := blocks.take():
            if 5 in block.indices:
                blocks.give_back(block, ())
            else:
                finished.extend(block.indices)

    with pytest.raises(AttackError, match=f"{MOST_ATTEMPTS} workers died while they attacked images 4, 5,"):
        work()
    assert finished == [0, 1, 2, 3]


def test_images_that_were_never_tried_wait_again() -> None:
    blocks = Blocks([], 1)
    for _ in range(MOST_ATTEMPTS + 1):
        blocks.put_back(Block([7]))
        assert blocks.take() == Block([7])


def test_shards_share_out_all_images() -> None:
    images = np.random.default_rng(0).permutation(50)
    parts = [Shard(number, 3).take(images) for number in (1, 2, 3)]
    assert sorted(np.concatenate(parts)) == list(range(50))
    assert [len(part) for part in parts] == [17, 17, 16]


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1/", "/3", "-1/2", "1/2/3", "1.5/2", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ClipguardError, match="must be I/N"):
        Shard.read(text)
