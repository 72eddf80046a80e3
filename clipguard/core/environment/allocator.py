"""Memory that stays with the process.

By default glibc gives large buffers back to the kernel as soon as they are free, and a pass of a convolutional tower
then spends up to 40 % of its time on pages that come and go (`benchmarks/allocator.py`).
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # names of glibc's mallopt
KEEP = 2**31 - 1  # bytes free at the end of the heap that are not given back: as many as can be said
LARGEST_ON_HEAP = 2**30  # bytes; a larger buffer has pages of its own, as those over 128 KiB to 32 MiB have by default
AT_ONCE = 64 * 2**20  # bytes by which the heap grows
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_memory() -> bool:
    """Have the allocator keep and reuse freed buffers of any size, where it is glibc's and nobody has set it otherwise.

    Returns:
        Whether it does so now.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((TRIM_THRESHOLD, KEEP), (TOP_PAD, AT_ONCE), (MMAP_THRESHOLD, LARGEST_ON_HEAP))
    return [mallopt(name, value) for name, value in settings] == [1, 1, 1]
