"""How many workers find room, which images each gets next, and what becomes of those whose worker died."""

from __future__ import annotations

import numpy as np
import pytest

from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.shard import Shard
from clipguard.benchmark.workers.blocks import MOST_ATTEMPTS, MOST_IMAGES, Block, Blocks
from clipguard.benchmark.workers.choice import count_workers
from clipguard.benchmark.workers.room import share_out
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


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"),
    [
        ([2, 2], 1, (1, 2)),  # never more than any node has
        ([2, 6], 2, (2, 3)),
        ([2, 6], 4, (4, 2)),
        ([0, 4], None, (1, 4)),  # a head without processors hosts none
        ([4, 4], None, (2, 4)),
        ([2, 64], None, (1, 64)),  # a small node holds nobody back
        ([8, 16], None, (3, 8)),
        ([4, 4], 100_000, (8, 1)),
    ],
)
def test_workers_ask_for_what_nodes_have(cpus: list[int], workers: int | None, expected: tuple[int, int]) -> None:
    count, resources = share_out([{"CPU": number} for number in cpus], "cpu", workers)
    assert (count, resources["num_cpus"]) == expected
    assert sum(number // expected[1] for number in cpus) >= count  # all find room


def test_what_finds_no_room_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="clipguard")
    share_out([{"CPU": 2}, {"CPU": 6}], "cpu", 1)
    assert "1 of 2 nodes have too few processors for a worker of 6" in caplog.text
    share_out([{"CPU": 2}], "cpu", 3)
    assert "there is room for 2, which start" in caplog.text
    with pytest.raises(ClipguardError, match="has a processor for a worker"):
        share_out([{"GPU": 4}], "cpu", None)


def test_a_worker_of_a_gpu_needs_a_processor_beside_it() -> None:
    nodes = [{"CPU": 8, "GPU": 4}, {"CPU": 0, "GPU": 8}, {"CPU": 64}]
    assert share_out(nodes, "auto", None) == (4, {"num_gpus": 1, "num_cpus": 1})
    assert share_out(nodes, "cpu", 9) == (9, {"num_cpus": 8})
    with pytest.raises(ClipguardError, match="no node of the Ray cluster has a GPU"):
        share_out([{"CPU": 8}, {"GPU": 8}], "cuda", None)


def test_there_are_no_more_workers_than_images_and_no_cluster_without_a_name() -> None:
    assert count_workers(BenchPlan(n_samples=4, workers=100_000)) == 4
    with pytest.raises(ClipguardError, match="`ray` names no cluster"):
        count_workers(BenchPlan(ray=""))
