"""Where a store's files are: a folder, or a prefix of an object store, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`.

A `RemotePath` has what the store uses of `pathlib.Path`. Objects are put whole, so nothing has to be renamed there.
Credentials, region and endpoint are those of the usual environment variables, or of the query of the address
(docs/store.md).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit

from clipguard.core.errors import OutputError, ResultError, first_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs")
PATIENCE = 9.0  # seconds until an object store must have answered for the first time
T = TypeVar("T")


class Facts(NamedTuple):
    """Of a file, by the names of `os.stat_result`."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or a prefix of some.

    Attributes:
        path: bucket and key.
        scheme: "s3" or "gs".
        filesystem: of pyarrow.
        known_folder: whether it is a prefix, if a listing has just said so.
    """

    path: str
    scheme: str
    filesystem: FileSystem = field(compare=False, repr=False)
    known_folder: bool | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.path}/{name}", self.scheme, self.filesystem)

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The same without its extension."""
        return Path(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The prefix that it is in."""
        return RemotePath(self.path.rpartition("/")[0], self.scheme, self.filesystem)

    def iterdir(self) -> Iterator[RemotePath]:
        """What is directly in it; nothing if there is none."""
        from pyarrow.fs import FileSelector, FileType

        with self._told(ResultError, "read"):
            infos = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        for info in infos:
            if info.base_name:
                path = f"{self.path}/{info.base_name}"
                yield RemotePath(path, self.scheme, self.filesystem, info.type == FileType.Directory)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What is directly in it and has such a name."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def is_dir(self) -> bool:
        """Whether it is a prefix of anything."""
        return self._is("Directory") if self.known_folder is None else self.known_folder

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self._is("File")

    def exists(self) -> bool:
        """Whether it is there."""
        return not self._is("NotFound")

    def stat(self) -> Facts:
        """Size and time of an object."""
        with self._told(ResultError, "read"):
            info = self.filesystem.get_file_info(self.path)
        return Facts(info.size or 0, info.mtime.timestamp() if info.mtime else 0.0)

    def _is(self, kind: str) -> bool:
        with self._told(ResultError, "read"):
            return bool(self.filesystem.get_file_info(self.path).type.name == kind)

    def read_bytes(self) -> bytes:
        """Its content. Raises FileNotFoundError if there is none."""
        with self._told(ResultError, "read"), self.filesystem.open_input_stream(self.path) as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """The same as a text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Put it whole. Raises OutputError if the object store does not take it."""
        with self._told(OutputError, "written"), self.filesystem.open_output_stream(self.path) as file:
            file.write(content)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it. Raises FileNotFoundError if there is none, unless that is fine."""
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])), self._told(OutputError, "removed"):
            self.filesystem.delete_file(self.path)

    def rmdir(self) -> None:
        """Remove what stands for an empty prefix."""
        with self._told(OutputError, "removed"):
            self.filesystem.delete_dir(self.path)

    @contextlib.contextmanager
    def _told(self, kind: type[ResultError | OutputError], what: str) -> Iterator[None]:
        """An object store's errors as ours, but for the one that says that nothing is there."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise kind(f"{self} cannot be {what} ({first_line(error)}). Run the same command again later.") from error


Place: TypeAlias = Path | RemotePath


def open_place(store: str | Path | RemotePath) -> Place:
    """The folder, or the prefix of an object store, that an address names.

    Raises:
        ResultError: for another kind of address, and an object store that does not answer or does not let us.
    """
    if isinstance(store, RemotePath):
        return store
    address = re.sub(r"^(\w+):/(?!/)", r"\1://", str(store)) if isinstance(store, Path) else store
    scheme, separator, _ = address.partition("://")
    if not separator:
        return Path(store)
    parts = urlsplit(address)
    if scheme not in SCHEMES or not parts.hostname:
        raise ResultError(f"`store` {scheme}://... must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")
    bucket = parts.netloc.rpartition("@")[2]
    shown = f"`store` {scheme}://{bucket}"
    try:
        root = _in_time(lambda: _open(scheme, bucket, parts.path.strip("/"), dict(parse_qsl(parts.query))))
    except (OSError, TypeError, ValueError) as error:
        raise ResultError(
            f"{shown} cannot be used ({first_line(error)}). Check address, endpoint and credentials."
        ) from error
    if root is None:
        raise ResultError(f"{shown} cannot be used: there is no such bucket. Make it, or name another.")
    return root


def listed(folder: Place, pattern: str) -> list[Place]:
    """What is directly in a folder and has such a name, by name; nothing if there is no folder."""
    found: list[Place] = [*folder.glob(pattern)]
    return sorted(found, key=lambda path: path.name)


def _open(scheme: str, bucket: str, prefix: str, options: dict[str, str]) -> RemotePath | None:
    """The prefix, once its bucket has answered; None if there is no such bucket."""
    from pyarrow.fs import FileType

    filesystem = _s3(bucket, options) if scheme == "s3" else _gcs(options)
    if filesystem.get_file_info(bucket).type == FileType.NotFound:
        return None
    return RemotePath(f"{bucket}/{prefix}" if prefix else bucket, scheme, filesystem)


def _s3(bucket: str, options: dict[str, str]) -> FileSystem:
    """S3 as the query of an address and the environment say; credentials are found by AWS's own rules."""
    from pyarrow.fs import S3FileSystem, resolve_s3_region

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in options:
        scheme, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"} | options
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if "region" not in options and (region or "endpoint_override" not in options):
        options = options | {"region": region or resolve_s3_region(bucket)}
    return S3FileSystem(connect_timeout=4, request_timeout=60, **options)


def _gcs(options: dict[str, str]) -> FileSystem:
    """Google's as the query of an address says; credentials are the application's default ones."""
    from pyarrow.fs import GcsFileSystem

    anonymous = options.pop("anonymous", "false").lower() == "true"
    return GcsFileSystem(anonymous=anonymous, retry_time_limit=timedelta(seconds=60), **options)


def _in_time(work: Callable[[], T]) -> T:
    """What a call gives that may take `PATIENCE` seconds. Raises TimeoutError after them, and what the call raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)  # the process does not wait for one that is late
    thread.start()
    thread.join(PATIENCE)
    if not found:
        raise TimeoutError(f"no answer in {PATIENCE:g} seconds")
    result, error = found[0]
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]
