"""From an encoded image to RGB pixels, in one of two ways, and what was done to them on the way."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from clipguard.core.notices import notice
from clipguard.data.images import EncodedImage

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageFile

Decode = Literal["upright", "plain"]
Change = Literal[
    "rotated", "over white", "16 bits", "first frame", "unreadable EXIF", "not rotated", "not over white", "clipped"
]
CHANGES_IN_WORDS: dict[Change, str] = {
    "rotated": "rotated as their EXIF says",
    "over white": "with transparency laid over white",
    "16 bits": "scaled from 16 to 8 bits",
    "first frame": "with several frames, of which the first is taken",
    "unreadable EXIF": "with EXIF that cannot be read, taken as upright",
    "not rotated": "not rotated as their EXIF says",
    "not over white": "with transparency dropped",
    "clipped": "of more than 8 bits clipped to 255",
}
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose "I" pixels are 0 to 65535; elsewhere they are integers of any range
GREY_BEYOND_12_BITS = 4096 >> 8  # the first grey of 8 bits that no 12-bit value comes to, where 16 bits are scaled to 8
UNKNOWN_INTEGER_RANGE = "32-bit or signed integer pixels have no known range; store 8-bit or 16-bit images"
ORIENTATION = 0x0112  # EXIF's tag
PHOTOMETRIC, WHITE_IS_ZERO, SAMPLE_FORMAT, SIGNED = 262, 0, 339, 2  # TIFF's tags and values


class Decoded(NamedTuple):
    """An RGB image, what was done to its pixels, and the brightest of them where the file has 16 bits."""

    image: PIL.Image.Image
    changes: frozenset[Change] = frozenset()
    brightest: int | None = None


def decode(encoded: EncodedImage, how: Decode = "upright") -> Decoded:
    """An RGB image; of several frames the first.

    Args:
        encoded: as stored.
        how: "upright": EXIF rotation applied, transparency laid over white, 16-bit greys scaled to 8; "plain": what
            `PIL.Image.open(...).convert("RGB")` gives, as open_clip, torchvision and CLIP_benchmark read images.

    Raises:
        ValueError: for pixels whose range nothing tells, and whatever PIL raises on a broken file; the caller knows the
            row and turns it into a DatasetError.
    """
    return _decode_plain(encoded) if how == "plain" else _decode_upright(encoded)


def _decode_upright(encoded: EncodedImage) -> Decoded:
    import numpy as np

    with _open(encoded) as image:
        changes: set[Change] = set()
        if _has_frames(image):
            changes.add("first frame")
        layout = str([tile[3] for tile in image.tile])  # as in the file: pixels in memory may have fewer bits
        image.load()
        deep = ";16" in layout or image.mode.startswith("I")
        tags = getattr(image, "tag_v2", {})
        if SIGNED in np.ravel(tags.get(SAMPLE_FORMAT, ())):
            raise ValueError(UNKNOWN_INTEGER_RANGE)
        inverted = image.mode.startswith("I") and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO  # with 8 bits PIL inverts
        rgb = to_rgb(image, bits=12 if "I;12" in layout else 16, inverted=inverted)
        if has_transparency(image):
            changes.add("over white")
        method, readable = find_transpose(image)
    if deep:
        changes.add("16 bits")
    if not readable:
        changes.add("unreadable EXIF")
    if method is not None:
        changes.add("rotated")
        rgb = rgb.transpose(method)
    ranged = not deep or inverted or "I;12" in layout
    brightest = None if ranged else max(high for _, high in rgb.getextrema())  # type: ignore[misc]
    return Decoded(rgb, frozenset(changes), brightest)


def _decode_plain(encoded: EncodedImage) -> Decoded:
    """As PIL alone, and what `decode` would have done beside it."""
    with _open(encoded) as image:
        left: set[Change] = {"first frame"} if _has_frames(image) else set()
        rgb = image.convert("RGB")
        if find_transpose(image)[0] is not None:
            left.add("not rotated")
        if has_transparency(image):
            left.add("not over white")
        if image.mode.startswith(("I", "F")):
            left.add("clipped")
    return Decoded(rgb, frozenset(left))


def _open(encoded: EncodedImage) -> PIL.ImageFile.ImageFile:
    import PIL.Image

    if encoded.is_empty:
        raise ValueError("no image stored")
    source: Any = encoded.path if encoded.data is None else io.BytesIO(encoded.data)
    return PIL.Image.open(source)


def _has_frames(image: PIL.Image.Image) -> bool:
    """Whether a file just opened has more than one picture. A phone's photo (MPO) with its preview has not."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def to_rgb(image: PIL.Image.Image, bits: int = 16, *, inverted: bool = False) -> PIL.Image.Image:
    """Any PIL mode to RGB.

    Args:
        image: loaded.
        bits: of greys with more than 8 bits, 12 or 16.
        inverted: such greys have white at 0.

    Raises:
        ValueError: for an unknown range.
    """
    import numpy as np
    import PIL.Image

    if image.mode == "F":
        raise ValueError("float pixels have no known range; store 8-bit or 16-bit images")
    if image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS:  # PNG and PGM have at most 16 bits
        raise ValueError(UNKNOWN_INTEGER_RANGE)
    if image.mode.startswith("I"):  # convert() would clip greys to white instead of scaling them
        grey = np.asarray(image).astype(np.int64) >> (bits - 8)
        grey = grey.clip(0, 255).astype(np.uint8)
        return PIL.Image.fromarray(255 - grey if inverted else grey).convert("RGB")
    if image.getbands()[-1] == "A" or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def has_transparency(image: PIL.Image.Image) -> bool:
    """Whether any pixel of a loaded image lets a background through."""
    if image.mode.startswith("I") or not (image.getbands()[-1] == "A" or "transparency" in image.info):
        return False
    return int(image.convert("RGBA").getchannel("A").getextrema()[0]) < 255  # type: ignore[arg-type]


def find_transpose(image: PIL.Image.Image) -> tuple[PIL.Image.Transpose | None, bool]:
    """How a loaded image is to be turned to stand upright, and whether its EXIF could be read.

    Only the tag is read: PIL's `exif_transpose` also writes all others anew, and fails on what it cannot write.
    """
    from PIL.Image import Transpose

    try:
        tag = image.getexif().get(ORIENTATION)
    except Exception:  # a dozen types, SyntaxError and struct.error among them
        return None, False
    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return methods.get(tag), True  # type: ignore[arg-type]  # whatever the tag holds


@dataclass
class PixelCount:
    """What decoding did to the images of a set."""

    of: int = 0
    counts: Counter[Change] = field(default_factory=Counter)
    brightest: int = -1

    def add(self, changes: Iterable[Change], brightest: int | None) -> None:
        """One more image; see `Decoded`."""
        self.of += 1
        self.counts.update(changes)
        if brightest is not None:
            self.brightest = max(self.brightest, brightest)

    def to_dict(self) -> dict[str, int]:
        """How many images each change was made to, where it was: `pixels` of a data set in the result files."""
        return {change.replace(" ", "_"): self.counts[change] for change in CHANGES_IN_WORDS if self.counts[change]}

    def say(self, name: str) -> None:
        """One notice of a kind for the set `name`, if there is anything to say."""

        def listed(*changes: Change) -> str:
            return ", ".join(f"{self.counts[c]} {CHANGES_IN_WORDS[c]}" for c in changes if self.counts[c])

        begin = f"{name}: of {self.of} images "
        if pixels := listed("rotated", "over white", "16 bits"):
            notice("rescaled", f"{begin}{pixels} (docs/datasets.md, Decoding)")
        if left := listed("not rotated", "not over white", "clipped"):
            notice("skipped", f'{begin}{left}, as convert("RGB") does; --decode upright sets them right')
        if frames := listed("first frame"):
            notice("skipped", begin + frames)
        if guessed := listed("unreadable EXIF"):
            notice("guessed", begin + guessed)
        if 0 <= self.brightest < GREY_BEYOND_12_BITS:
            notice(
                "guessed",
                f"{begin}{self.counts['16 bits']} have 16 bits, and none has a value above "
                f"{(self.brightest + 1) * 256 - 1} of 65535: where these are 8- or 12-bit values, they are seen far "
                "too dark; scale them to 16 bits, or store 8",
            )
