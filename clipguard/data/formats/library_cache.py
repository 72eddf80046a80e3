"""The caches of Hugging Face's libraries: an error that is theirs must not be blamed on a data set."""

from __future__ import annotations

import errno
from pathlib import Path

from clipguard.core.errors import DatasetError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


def check_cache(error: BaseException) -> None:
    """Raise DatasetError, with the variable to set, if `error` came of a cache that is full or cannot be written."""
    import datasets
    import huggingface_hub

    caches = {
        "HF_DATASETS_CACHE": Path(datasets.config.HF_DATASETS_CACHE),
        "HF_HOME": Path(huggingface_hub.constants.HF_HOME),
        "HF_HUB_CACHE": Path(huggingface_hub.constants.HF_HUB_CACHE),
    }
    for cause in _causes(error):
        if not isinstance(cause, OSError):
            continue
        full = cause.errno in FULL or any(f"[Errno {number}]" in str(cause) for number in FULL)  # pyarrow has the text
        for variable, cache in caches.items():
            inside = str(cache) in str(cause) or _is_above(cause.filename, cache)
            if full or (inside and cause.errno in UNWRITABLE):
                reason = cause.strerror or "no space left"
                raise DatasetError(
                    f"the cache in {cache} cannot be written: {reason}; set {variable} to a folder that can be written"
                    f"{' and has space' if full else ''}"
                ) from error


def _is_above(folder: str | bytes | int | None, cache: Path) -> bool:
    return isinstance(folder, str) and folder != "" and cache.is_relative_to(folder)


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error and all that it came of."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
