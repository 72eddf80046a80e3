"""Every kind of pixels becomes the RGB image that PIL alone gives, or the one that is documented, and is counted."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import pytest

import clipguard
from clipguard.cli import run
from clipguard.core.notices import noticing
from clipguard.data.decoding import PixelCount, decode
from clipguard.data.images import EncodedImage

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
IMAGE = PIL.Image.fromarray(PIXELS)
TRANSPOSED = {
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PIXELS),
}


def encode(image: PIL.Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(decode(EncodedImage(data, None)).image)


def exif(entries: list[tuple[int, int, int, bytes]], more: bytes = b"") -> bytes:
    """An EXIF block of (tag, type, count, value) and what lies behind, as cameras write it."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + more


def orientation(value: int) -> tuple[int, int, int, bytes]:
    return 0x112, 3, 1, struct.pack("<HH", value, 0)


def behind(tag: int, kind: int, entries: int) -> tuple[int, int, int, bytes]:
    """An entry whose value is the first thing behind `entries` of them."""
    return tag, kind, 1, struct.pack("<I", 8 + 2 + 12 * entries + 4)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_of_every_format(form: str, value: int) -> None:
    if form == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("PIL without AVIF")
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(form, {})
    options = {"exif": exif([orientation(value)])[6 if form == "PNG" else 0 :]}
    if form == "TIFF":
        options = {"tiffinfo": {0x112: value}}  # type: ignore[dict-item]
    found = pixels(encode(IMAGE, form, **lossless, **options)).astype(int)
    expected = TRANSPOSED.get(value, PIXELS)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (8 if form == "AVIF" else 0)


ODD = {
    "a negative denominator": exif([orientation(6), behind(0x11A, 10, 2)], struct.pack("<ii", -1, 0)),
    "a value behind the end": exif([orientation(6), (0x11A, 10, 1, struct.pack("<I", 9999))]),
    "more entries than there are": b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 500, 0x112, 3, 1) + b"\6\0\0\0",
    "an unknown type": exif([orientation(6), (0x9999, 77, 3, bytes(4))]),
    "broken GPS and camera blocks": exif([orientation(6), *((t, 4, 1, b"\xff\xff\0\0") for t in (0x8825, 0x8769))]),
    "orientation 0": exif([orientation(0)]),
    "orientation 9": exif([orientation(9)]),
    "orientation as text": exif([(0x112, 2, 2, b"6\0\0\0")]),
    "orientation twice": exif([(0x112, 3, 2, struct.pack("<HH", 6, 6))]),
    "no TIFF header": b"Exif\0\0garbage data here",
    "cut": exif([orientation(6)])[:22],
    "nothing": b"Exif\0\0",
}
UPRIGHT = {"orientation 0", "orientation 9", "orientation as text", "no TIFF header", "cut", "nothing"}


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:.*")  # PIL's own, on such blocks
def test_an_odd_exif_block_never_costs_the_image(form: str, name: str) -> None:
    block = ODD[name][6:] if form == "PNG" else ODD[name]
    data = encode(IMAGE, form, exif=block, **({"quality": 95} if form == "JPEG" else {"lossless": True}))
    plain = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    expected = plain if name in UPRIGHT else plain.transpose(PIL.Image.Transpose.ROTATE_270)
    assert np.array_equal(pixels(data), np.asarray(expected))
    try:
        by_pil = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    except Exception:
        assert name in ("a negative denominator", "no TIFF header")  # where PIL gives up
    else:
        assert np.array_equal(pixels(data), np.asarray(by_pil.convert("RGB")))


def test_orientation_in_xmp_and_a_broken_profile_of_imagemagick() -> None:
    from PIL.PngImagePlugin import PngInfo

    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    assert np.array_equal(pixels(encode(IMAGE, "PNG", pnginfo=info)), TRANSPOSED[3])
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n      20\nthis is no hex")
    found = decode(EncodedImage(encode(IMAGE, "PNG", pnginfo=info), None))
    assert np.array_equal(np.asarray(found.image), PIXELS)
    assert found.changes == {"unreadable EXIF"}


GREYS = np.array([[0, 255, 256, 4095, 4096, 65535]], dtype=np.uint16)


def png16(rows: npt.NDArray[np.int64], colour: int) -> bytes:
    """A 16-bit PNG of a colour type; PIL writes only grey ones."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def tiff(bits: int, data: bytes, width: int, order: str = "<", *, photometric: int = 1, sample: int = 1) -> bytes:
    """A grey TIFF of one row, as scanners and microscopes write it."""
    place = 8 + 2 + 10 * 12 + 4
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: place, 277: 1, 278: 1, 279: len(data)}
    tags |= {339: sample}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IH", 8, 10) + entries + struct.pack(f"{order}I", 0) + data


def test_sixteen_and_twelve_bits_are_scaled_whatever_the_format() -> None:
    sixteen = {
        "PNG": encode(PIL.Image.fromarray(GREYS), "PNG"),
        "TIFF": encode(PIL.Image.fromarray(GREYS), "TIFF"),
        "TIFF, big endian": tiff(16, GREYS.astype(">u2").tobytes(), 6, ">"),
        "PGM": b"P5 6 1 65535\n" + GREYS.astype(">u2").tobytes(),
        "RGB": png16(GREYS[..., None].repeat(3, 2).astype(np.int64), 2),
        "RGBA": png16(np.dstack([GREYS] * 3 + [np.full_like(GREYS, 65535)]).astype(np.int64), 6),
    }
    for name, data in sixteen.items():
        found = decode(EncodedImage(data, None))
        assert np.array_equal(np.asarray(found.image)[..., 0], GREYS >> 8), name
        assert (found.changes, found.brightest) == ({"16 bits"}, 255), name
    twelve = tiff(12, bytes([0x00, 0x08, 0x00, 0xFF, 0xF1, 0x00]), 4)  # 0, 2048, 4095, 256
    assert np.asarray(decode(EncodedImage(twelve, None)).image)[..., 0].tolist() == [[0, 128, 255, 16]]
    negative = tiff(16, GREYS.astype("<u2").tobytes(), 6, photometric=0)  # 0 is white, which PIL minds with 8 bits only
    assert np.array_equal(pixels(negative)[..., 0], 255 - (GREYS >> 8))
    assert np.array_equal(pixels(tiff(8, bytes([0, 200]), 2, photometric=0))[..., 0], [[255, 55]])
    pgm = b"P5 2 1 1023\n" + np.array([1023, 512], dtype=">u2").tobytes()  # says its range
    assert np.asarray(decode(EncodedImage(pgm, None)).image)[..., 0].tolist() == [[255, 128]]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("32-bit or signed integer", encode(PIL.Image.fromarray(GREYS.astype(np.int32)), "TIFF")),
        ("32-bit or signed integer", encode(PIL.Image.fromarray((GREYS >> 8).astype(np.int32)), "TIFF")),
        ("32-bit or signed integer", tiff(32, GREYS.astype("<u4").tobytes(), 6)),
        ("32-bit or signed integer", tiff(8, bytes(6), 6, sample=2)),
        ("float", encode(PIL.Image.fromarray(GREYS.astype(np.float32)), "TIFF")),
    ],
)
def test_pixels_of_unknown_range_are_refused(kind: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=f"{kind} pixels have no known range; store 8-bit"):
        pixels(data)


def by_pil(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def test_what_has_neither_transparency_nor_more_bits_is_what_pil_gives() -> None:
    cmyk = IMAGE.convert("CMYK")
    honest = {
        "1": encode(IMAGE.convert("1"), "PNG"),
        "L": encode(IMAGE.convert("L"), "JPEG"),
        "P": encode(IMAGE.quantize(8), "PNG"),
        "opaque RGBA": encode(IMAGE.convert("RGBA"), "PNG"),
        "opaque LA": encode(IMAGE.convert("LA"), "PNG"),
        "CMYK": encode(cmyk, "JPEG"),
        "CMYK TIFF": encode(cmyk, "TIFF"),
        "YCbCr TIFF": encode(IMAGE.convert("YCbCr"), "TIFF"),
        "LAB": encode(PIL.Image.merge("LAB", IMAGE.split()), "TIFF"),
        "GIF": encode(IMAGE, "GIF"),
    }
    for name, data in honest.items():
        found = decode(EncodedImage(data, None))
        assert np.array_equal(np.asarray(found.image), by_pil(data)), name
        assert found.changes == frozenset(), name


def test_transparency_is_laid_over_white() -> None:
    alpha = PIL.Image.fromarray(PIXELS[..., 0])
    shares = PIXELS[..., :1] / 255
    over_white = PIXELS * shares + 255 * (1 - shares)
    rgba = IMAGE.copy()
    rgba.putalpha(alpha)
    assert np.abs(pixels(encode(rgba, "PNG")) - over_white).max() < 1.01
    palette = IMAGE.quantize(4)
    index = palette.getpixel((0, 0))
    for form in ("PNG", "GIF"):
        found = decode(EncodedImage(encode(palette, form, transparency=index), None))
        assert found.changes == {"over white"}
        clear = np.asarray(palette) == index
        assert (np.asarray(found.image)[clear] == 255).all()
        assert np.array_equal(np.asarray(found.image)[~clear], np.asarray(palette.convert("RGB"))[~clear])
    keyed = encode(IMAGE, "PNG", transparency=tuple(int(v) for v in PIXELS[0, 0]))
    assert pixels(keyed)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_said(form: str) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    found = decode(EncodedImage(encode(frames[0], form, save_all=True, append_images=frames[1:], **options), None))
    assert found.image.getpixel((4, 4)) == (255, 0, 0)
    assert found.changes == {"first frame"}
    assert decode(EncodedImage(encode(frames[0], form, **options), None)).changes == frozenset()


def count(images: list[bytes]) -> list[tuple[str, str]]:
    counted = PixelCount()
    for data in images:
        decoded = decode(EncodedImage(data, None))
        counted.add(decoded.changes, decoded.brightest)
    with noticing() as notices:
        counted.say("photos")
    return [(n["kind"], n["text"]) for n in notices]


def test_values_of_twelve_bits_in_sixteen_are_said_once_a_set() -> None:
    dark = encode(PIL.Image.fromarray(np.minimum(GREYS, 4095)), "PNG")
    dark_rgb = png16(np.full((4, 4, 3), 4095), 2)
    bright = encode(PIL.Image.fromarray(GREYS), "PNG")
    said = count([dark, dark_rgb, encode(IMAGE, "PNG")])
    assert [kind for kind, _ in said] == ["rescaled", "guessed"]
    assert said[1][1].startswith("photos: of 3 images 2 have 16 bits, and none has a value above 4095 of 65535")
    assert [kind for kind, _ in count([dark, bright])] == ["rescaled"]
    assert count([encode(IMAGE, "PNG"), encode(IMAGE, "JPEG")]) == []


def write_photos(root: Path, n: int = 4) -> Path:
    """Emoji in class folders; the first is turned on its side with the tag that turns it back, with an odd EXIF."""
    data = clipguard.load_dataset("emoji-food")
    names = data.class_names
    for index in range(n):
        image = data.image(index).resize((64, 64))
        folder = root / names[int(data.labels[index])]
        folder.mkdir(parents=True, exist_ok=True)
        if index == 0:
            image = image.transpose(PIL.Image.Transpose.ROTATE_90)
            block = exif([orientation(6), behind(0x11A, 10, 2)], struct.pack("<ii", -1, 0))
            image.save(folder / "0.jpg", quality=95, exif=block)
        else:
            image.save(folder / f"{index}.png")
    return root


def test_bench_and_attack_say_what_was_done_to_the_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_photos(tmp_path / "photos", 30)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = clipguard.bench(["tiny"], [str(root)], attacks=["none"], n_samples=None)
    assert result.run["datasets"][str(root)]["pixels"] == {"rotated": 1}
    said = [n for n in result.run["notices"] if n["kind"] == "rescaled"]
    assert len(said) == 1
    assert said[0]["text"].startswith(f"{root}: of 30 images 1 rotated as their EXIF says")
    photo = next(root.glob("*/0.jpg"))
    assert run(["attack", str(photo), "--classes", "fruit, drink", "--attack", "pgd-2", "--out", "out"]) == 0
    assert "of 1 images 1 rotated as their EXIF says" in " ".join(capfd.readouterr().err.split())


def plain_inputs() -> dict[str, bytes]:
    turned = encode(IMAGE, "JPEG", quality=95, exif=exif([orientation(6)]))
    clear = IMAGE.copy()
    clear.putalpha(PIL.Image.fromarray(PIXELS[..., 0]))
    return {
        "not rotated": turned,
        "not over white": encode(clear, "PNG"),
        "clipped": encode(PIL.Image.fromarray(GREYS), "PNG"),
        "": encode(IMAGE, "PNG"),
    }


@pytest.mark.parametrize("left", plain_inputs())
def test_plain_is_what_pil_gives_and_what_is_left_undone_is_counted(left: str) -> None:
    data = plain_inputs()[left]
    found = decode(EncodedImage(data, None), "plain")
    assert np.array_equal(np.asarray(found.image), by_pil(data))
    assert found.changes == ({left} if left else frozenset())


def test_floats_and_integers_are_clipped_where_pil_alone_decodes() -> None:
    for dtype in (np.int32, np.float32):
        data = encode(PIL.Image.fromarray(GREYS.astype(dtype)), "TIFF")
        assert np.array_equal(np.asarray(decode(EncodedImage(data, None), "plain").image), by_pil(data))
