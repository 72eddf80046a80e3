"""Files by their suffix: which are images here, and which of the others may be data that is not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

# Formats of pixels, of which PIL knows the suffixes. Not: documents, vector graphics, video, containers of science.
RASTER_FORMATS = frozenset(
    "AVIF BMP CUR DCX DDS DIB GIF HEIF ICNS ICO JPEG JPEG2000 JXL MPO PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP".split()  # noqa: SIM905 - one a line would be a page
)
OPTIONAL_FEATURES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # PIL may have been built without
TEXT_SUFFIXES = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .yaml .yml .toml .xml .html .htm .log .cfg .ini .py .sh .ipynb .db".split()  # noqa: SIM905
)
TEXT_NAMES = frozenset("license licence readme copying notice authors version makefile checksums".split())  # noqa: SIM905
ARCHIVE_SUFFIXES = frozenset(
    ".gz .tgz .bz2 .xz .zst .zip .7z .rar .pq .parq .feather .npy .npz .h5 .hdf5 .tfrecord .rec".split()  # noqa: SIM905
)


def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with the dot, of the raster formats that PIL reads in this installation."""
    import PIL.features
    import PIL.Image

    PIL.Image.init()
    missing = {form for form, feature in OPTIONAL_FEATURES.items() if not PIL.features.check(feature)}
    readable = RASTER_FORMATS - missing
    return frozenset(suffix for suffix, form in PIL.Image.registered_extensions().items() if form in readable)


def may_be_data(name: str, images: bool) -> bool:
    """Whether a file that is not read may be data: beside images all but texts; beside tables archives and arrays."""
    suffix = PurePath(name).suffix.lower()
    if not images:
        return suffix in ARCHIVE_SUFFIXES
    return suffix not in TEXT_SUFFIXES and (bool(suffix) or name.lower() not in TEXT_NAMES)


def count_suffixes(names: Iterable[str]) -> str:
    """`3 .heic, 1 .npy, 1 without suffix`, the most frequent first."""
    counts = Counter(PurePath(name).suffix.lower() or "without suffix" for name in names)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
