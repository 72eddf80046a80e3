"""How many images a pass takes: at most the batch size, which shrinks with memory, and at least what rounds alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from clipguard.attacks.engine.options import Fill
from clipguard.core.errors import AttackError

log = logging.getLogger("clipguard")
CPU_BATCH, LARGEST_BATCH = 64, 1024
SMALLEST_FIXED = 32  # rows: a GPU takes as long for fewer
PROBE_ROWS = 8  # of the pass whose memory is measured
STATE_TENSORS_PER_ROW = 24  # image-sized, that an attack holds at most, its temporaries included
MEMORY_SHARE = 0.8  # of what is free on the device: what a batch may take
Pass = Callable[[Tensor, int, int], tuple[Tensor, ...]]  # rows x[start:stop], start, stop -> columns of as many rows


def least_rows(model: nn.Module) -> int:
    """The fewest rows of a pass on a CPU from which on the model's kernels round alike.

    A model says so by an attribute `least_rows` of its own; one that has none is taken to do so from one row on. Passes
    of fewer rows are filled up to that (see `filled`).
    """
    n: int = getattr(model, "least_rows", 1)
    return n


def fixed_sizes(batch_size: int) -> list[int]:
    """The at most three numbers of rows that a GPU or a compiled model sees: every other would be planned for anew."""
    return sorted({min(SMALLEST_FIXED, batch_size), -(-batch_size // 2), batch_size})


def filled(
    x: Tensor, fill: Fill, least: int, batch_size: int, *, small: int | None = None, fixed: bool = False
) -> Tensor:
    """The rows (B, C, H, W) with black images below, so that a row's bits do not depend on their number.

    Args:
        x: the rows, at least one.
        fill: up to `least` rows, a multiple of them, or a whole batch; "alone" adds nothing.
        least: see `least_rows`.
        batch_size: of the run.
        small: fewer rows than `least` are filled up to a multiple of these, where `fill` says up to `least`.
        fixed: up to one of `fixed_sizes`.
    """
    missing = filled_rows(len(x), fill, least, batch_size, small=small, fixed=fixed) - len(x)
    if not missing:
        return x
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])])


def filled_rows(
    n: int, fill: Fill, least: int, batch_size: int, *, small: int | None = None, fixed: bool = False
) -> int:
    """How many rows n of them, at least one, are filled up to; see `filled`. Never fewer for more."""
    least = min(least, batch_size)
    fewest = least if small is None or n > least else min(-(-n // small) * small, least)
    rows = {"least": fewest, "multiple": -(-n // fewest) * fewest, "full": batch_size, "alone": 0}[fill]
    if fixed:
        rows = next((size for size in fixed_sizes(batch_size) if size >= max(rows, n)), rows)
    return max(rows, n)


def fitting_batch_size(image: Tensor, gradient_pass: Callable[[Tensor], None]) -> int:
    """How many rows a batch should have: 64 on the CPU, where more gains nothing; on CUDA what fits, a power of two.

    Args:
        image: (C, H, W), one of those of the run.
        gradient_pass: takes a batch of them through the model and back.
    """
    if image.device.type != "cuda":
        return CPU_BATCH
    x = image.float().expand(PROBE_ROWS, *image.shape).contiguous()
    before = torch.cuda.memory_allocated(image.device)
    torch.cuda.reset_peak_memory_stats(image.device)
    gradient_pass(x)
    peak = torch.cuda.max_memory_allocated(image.device) - before
    row = peak / PROBE_ROWS + STATE_TENSORS_PER_ROW * 4 * image.numel()
    rows = int(MEMORY_SHARE * torch.cuda.mem_get_info(image.device)[0] / row)
    return min(LARGEST_BATCH, 1 << max(0, rows.bit_length() - 1))


class Batching:
    """Splits passes into batches.

    Args:
        size: rows a batch at most; halved for good when memory does not suffice.
        eot: how often each batch is passed; results are the mean.
    """

    def __init__(self, size: int, eot: int) -> None:
        self.size, self.eot = size, eot

    def run(self, x: Tensor, one: Pass) -> tuple[Tensor, ...]:
        """Apply a pass to all rows. Raises AttackError if there is no memory for a single one."""
        outputs: list[tuple[Tensor, ...]] = []
        start = 0
        while start < len(x):
            stop = min(start + self.size, len(x))
            try:
                with torch.no_grad():
                    passes = [one(x[start:stop], start, stop) for _ in range(self.eot)]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                passes = []  # not here: the error's traceback still holds the memory
            if passes:
                outputs.append(passes[0] if self.eot == 1 else tuple(map(_mean, zip(*passes, strict=True))))
                start = stop
            else:
                self._shrink(stop - start)
        return tuple(join(column) for column in zip(*outputs, strict=True))

    def _shrink(self, tried: int) -> None:
        if tried == 1:
            raise AttackError("Out of memory at batch size 1; use a smaller model or image, or another `device`.")
        self.size = tried // 2
        torch.cuda.empty_cache()
        log.warning("Out of memory at batch size %d; going on with `batch_size=%d`.", tried, self.size)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors below each other; one alone as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(dim=0)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's error, Python's, and the RuntimeError that PyTorch's CPU allocator raises."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return any(sign in str(error) for sign in signs)
