"""Which files are images here, and which of the others are worth a word when they are not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

# Formats of pixels, of which PIL knows the suffixes. Not: documents, vector graphics, video, containers of science.
RASTER = frozenset(
    "AVIF BMP CUR DCX DDS DIB GIF HEIF ICNS ICO JPEG JPEG2000 JXL MPO PCX PNG PPM PSD QOI SGI SUN TGA TIFF WEBP".split()  # noqa: SIM905 - one a line would be a page
)
OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # PIL may have been built without
TEXTS = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .yaml .yml .toml .xml .html .htm .log .cfg .ini .py .sh .ipynb .db".split()  # noqa: SIM905
)
BESIDE = frozenset({"license", "licence", "readme", "copying", "notice", "authors", "version", "makefile", "checksums"})
ARCHIVES = frozenset(
    ".gz .tgz .bz2 .xz .zst .zip .7z .rar .pq .parq .feather .npy .npz .h5 .hdf5 .tfrecord .rec".split()  # noqa: SIM905
)


def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with the dot, of the raster formats that PIL reads in this installation."""
    import PIL.features
    import PIL.Image

    PIL.Image.init()
    missing = {form for form, feature in OPTIONAL.items() if not PIL.features.check(feature)}
    readable = RASTER - missing
    return frozenset(suffix for suffix, form in PIL.Image.registered_extensions().items() if form in readable)


def is_worth_a_word(name: str, images: bool) -> bool:
    """Whether a file that is not read may be data: beside images all but texts; beside tables archives and arrays."""
    suffix = PurePath(name).suffix.lower()
    if not images:
        return suffix in ARCHIVES
    return suffix not in TEXTS and (bool(suffix) or name.lower() not in BESIDE)


def count_suffixes(names: Iterable[str]) -> str:
    """`3 .heic, 1 .npy, 1 without suffix`, the most frequent first."""
    counts = Counter(PurePath(name).suffix.lower() or "without suffix" for name in names)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
