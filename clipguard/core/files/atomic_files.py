"""Files that are there as a whole or not at all: written under another name in the same folder, and then renamed.

What is guaranteed: whoever opens the path sees the file that was there before or the new one, never a part of it, also
where several processes write it at once (the last one wins) or one is killed. A killed process leaves a part under a
name of its own, which `is_part` knows. An error leaves nothing. With `durable` the content, and that it is there,
survive a crash of the machine, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What file systems answer that cannot bring a folder, or anything, to the disk by request.
NO_SYNC = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}
PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file in a folder that exists.

    Args:
        path: what it is called at the end; a file that is there is replaced.
        content: all of it.
        durable: return once it is on the disk.

    Raises:
        OSError: if the disk does not take it; what was there before still is.
    """
    with replacing(path, durable=durable) as part:
        part.write_bytes(content)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """For content that others write: another path, nobody else's, that becomes `path` at the end of the block.

    Args:
        path: what the file is called at the end; a file that is there is replaced.
        durable: leave the block once it is on the disk.

    Yields:
        The path to write to. It is removed if the block raises.

    Raises:
        OSError: if the disk does not take it; what was there before still is.
    """
    part = _part(path)
    try:
        yield part
        if durable:
            sync(part)
        part.replace(path)
        if durable:
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def is_part(name: str) -> bool:
    """Whether a file name is that of a part that is being written, or that a killed process left."""
    return PART.fullmatch(name) is not None


def try_to_write(path: Path) -> None:
    """Make and remove a part of `path`.

    Raises:
        OSError: if the folder does not take it.
    """
    part = _part(path)
    part.touch()
    part.unlink()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")


def sync(file: Path | int) -> None:
    """Bring a file's content, or a folder's names, to the disk, as far as its file system can.

    Args:
        file: a path, or the descriptor of an open file.

    Raises:
        OSError: if the disk does not take it.
    """
    try:
        if isinstance(file, int):
            os.fsync(file)
            return
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
