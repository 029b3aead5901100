import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from model.errors import ItemFailure, Reason
from model.image_bytes import Limits, canonicalise

# Top left, top right, bottom left, bottom right.
RED, GREEN, BLUE, YELLOW = (250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)
CORNERS = (RED, GREEN, BLUE, YELLOW)


def corners(width: int = 48, height: int = 32) -> Image.Image:
    """A quarter of the picture in each colour."""
    pixels = np.zeros((height, width, 3), np.uint8)
    rows, columns = height // 2, width // 2
    pixels[:rows, :columns], pixels[:rows, columns:] = RED, GREEN
    pixels[rows:, :columns], pixels[rows:, columns:] = BLUE, YELLOW
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def seen_corners(data: bytes, tolerance: int = 20) -> list[tuple[int, int, int]]:
    """Which of CORNERS is seen top left, top right, bottom left, bottom right."""
    pixels = decode(data).astype(int)
    height, width = pixels.shape[:2]
    found = []
    for row in (height // 4, 3 * height // 4):
        for column in (width // 4, 3 * width // 4):
            error = np.abs(np.array(CORNERS) - pixels[row, column]).max(-1)
            assert error.min() <= tolerance, f"{pixels[row, column]} is none of {CORNERS}"
            found.append(CORNERS[int(error.argmin())])
    return found


def refused(data: bytes, limits: Limits | None = None) -> ItemFailure:
    with pytest.raises(ItemFailure) as caught:
        canonicalise(data, limits)
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        encode(corners(), "JPEG", quality=95),
        encode(corners(), "JPEG", progressive=True),
        encode(corners(), "PNG"),
        encode(corners(), "JPEG") + b"bytes behind the picture",
    ],
)
def test_what_needs_nothing_passes_through_untouched(data: bytes) -> None:
    canonical = canonicalise(data)
    assert canonical.data == data
    assert (canonical.width, canonical.height) == (48, 32)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
def test_other_formats_are_encoded_anew_without_loss(kind: str, options: dict[str, Any]) -> None:
    canonical = canonicalise(encode(corners(), kind, **options))
    assert canonical.data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode(canonical.data), np.asarray(corners()))
    assert canonicalise(canonical.data).data == canonical.data


@pytest.mark.parametrize(
    ("orientation", "order"),
    [
        (1, (0, 1, 2, 3)),
        (2, (1, 0, 3, 2)),
        (3, (3, 2, 1, 0)),
        (4, (2, 3, 0, 1)),
        (5, (0, 2, 1, 3)),
        (6, (2, 0, 3, 1)),
        (7, (3, 1, 2, 0)),
        (8, (1, 3, 0, 2)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_upright(
    kind: str, orientation: int, order: tuple[int, ...]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    canonical = canonicalise(encode(corners(), kind, exif=exif.tobytes(), **options))
    size = (48, 32) if orientation < 5 else (32, 48)
    assert (canonical.width, canonical.height) == size
    assert decode(canonical.data).shape == (size[1], size[0], 3)
    assert seen_corners(canonical.data) == [CORNERS[index] for index in order]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_does_not_cost_the_picture(exif: bytes) -> None:
    data = encode(corners(), "JPEG", exif=exif)
    assert canonicalise(data).data == data


def test_cmyk_becomes_rgb() -> None:
    data = encode(corners().convert("CMYK"), "JPEG", quality=95)
    assert seen_corners(canonicalise(data).data, tolerance=30) == list(CORNERS)


def test_transparency_lies_on_white() -> None:
    image = corners().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[255, 0]], 32, 0).astype(np.uint8).repeat(24, 1)))
    for data in (encode(image, "PNG"), encode(image, "WEBP", lossless=True)):
        pixels = decode(canonicalise(data).data)
        assert (pixels[:, 24:] == 255).all()
        np.testing.assert_array_equal(pixels[:, :24], np.asarray(corners())[:, :24])


def test_half_transparent_is_half_white() -> None:
    image = Image.new("LA", (16, 16), (0, 128))
    assert set(decode(canonicalise(encode(image, "PNG")).data).ravel()) == {127}


def test_a_transparent_colour_of_a_palette_lies_on_white() -> None:
    image = corners().quantize(4)
    index = image.getpixel((0, 0))
    pixels = decode(canonicalise(encode(image, "PNG", transparency=index)).data)
    assert (pixels[0, 0] == 255).all()
    np.testing.assert_array_equal(pixels[0, -1], GREEN)


def test_a_transparent_colour_of_rgb_lies_on_white() -> None:
    pixels = decode(canonicalise(encode(corners(), "PNG", transparency=RED)).data)
    assert (pixels[0, 0] == 255).all()
    np.testing.assert_array_equal(pixels[-1, -1], YELLOW)


def test_sixteen_bits_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[np.newaxis].repeat(16, 0)
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(ramp), kind)
        pixels = decode(canonicalise(data).data)
        np.testing.assert_array_equal(pixels[..., 0], ramp >> 8)
        np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 0x1234, 0xABCD, 0xFF00) * 16 for _ in range(16))
    data = png(16, 16, depth=16, pixels=zlib.compress(rows))
    canonical = canonicalise(data)
    assert canonical.data != data
    assert decode(canonical.data)[3, 3].tolist() == [0x12, 0xAB, 0xFF]


@pytest.mark.parametrize("mode", ["L", "1", "P"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_grey_and_palette_become_rgb(mode: str, kind: str) -> None:
    image = corners().convert(mode)
    pixels = decode(canonicalise(encode(image, kind)).data)
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_grey_jpeg_becomes_rgb() -> None:
    data = encode(corners().convert("L"), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(canonicalise(data).data), expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    pixels = decode(canonicalise(data).data)
    assert pixels.shape == (16, 16, 3)
    assert set(map(tuple, pixels.reshape(-1, 3).tolist())) == {RED}


def test_of_an_mpo_the_first_picture_is_taken() -> None:
    data = encode(corners(), "MPO", save_all=True, append_images=[Image.new("RGB", (48, 32))])
    assert seen_corners(canonicalise(data).data) == list(CORNERS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"<!DOCTYPE html><html>404</html>", Reason.NOT_AN_IMAGE),
        (b"\xef\xbb\xbf\r\n <HTML><body>", Reason.NOT_AN_IMAGE),
        (b"BMW, a maker of cars, is not found here.", Reason.NOT_AN_IMAGE),
        (b"GIF89a is how a GIF begins, and this is a page.", Reason.NOT_AN_IMAGE),
        (b"BMW" * 1000 + b"\0", Reason.NOT_AN_IMAGE),
        # What begins as an image and is binary is a broken one.
        (b"BM" + bytes(range(100)), Reason.DECODE),
        (b'{"error": "not found"}', Reason.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.NOT_AN_IMAGE),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n\0\0", Reason.NOT_AN_IMAGE),
        (b"\0" * 1000, Reason.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", Reason.NOT_AN_IMAGE),
        (encode(corners(), "PPM"), Reason.NOT_AN_IMAGE),
        (encode(corners(), "ICO"), Reason.NOT_AN_IMAGE),
        (encode(Image.new("RGB", (1, 1)), "PNG"), Reason.TOO_SMALL),
        (encode(Image.new("RGB", (1, 1)), "GIF"), Reason.TOO_SMALL),
        (encode(Image.new("RGB", (400, 7)), "JPEG"), Reason.TOO_SMALL),
        (encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), Reason.DECODE),
    ],
)
def test_what_is_no_photograph_is_refused(data: bytes, reason: Reason) -> None:
    failure = refused(data)
    assert failure.reason is reason
    assert failure.message


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_file_is_never_a_picture(
    kind: str, options: dict[str, Any], kept: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind, **options)
    reason = refused(data[: int(len(data) * kept)]).reason
    assert reason in (Reason.TRUNCATED, Reason.DECODE, Reason.NOT_AN_IMAGE)
    if kind in ("JPEG", "PNG"):
        assert reason is Reason.TRUNCATED


def test_a_truncated_palette_png_is_never_half_a_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    data = encode(Image.fromarray(noise).convert("P"), "PNG")
    assert refused(data[: len(data) // 2]).reason is Reason.TRUNCATED


def png(width: int, height: int, depth: int, pixels: bytes) -> bytes:
    """An RGB PNG from its compressed pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [50_000, 12_000, 9_460])
def test_a_bomb_is_refused_before_a_pixel_is_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png(side, side, 8, zlib.compress(bytes(4_000_000)))
    assert len(data) < 5_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    failure = refused(data)
    assert failure.reason is Reason.TOO_MANY_PIXELS
    assert str(side) in failure.message or str(side * side) in failure.message


def test_caps_are_inclusive() -> None:
    data = encode(corners(), "PNG")
    assert canonicalise(data, Limits(len(data), 48 * 32)).data == data
    failure = refused(data, Limits(max_bytes=len(data) - 1))
    assert failure.reason is Reason.TOO_MANY_BYTES
    assert str(len(data) - 1) in failure.message
    assert refused(data, Limits(max_pixels=48 * 32 - 1)).reason is Reason.TOO_MANY_PIXELS
