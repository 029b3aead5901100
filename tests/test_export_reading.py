"""Every kind of file that a client may send gives the encoder what canonical bytes would."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export.reading import read_batch
from model.image_bytes import canonicalise
from model.preprocessing import KEEP, SQUASH, prepare
from serving.contract import Status

SIDE = 64
Read = Callable[[list[bytes]], tuple[np.ndarray, np.ndarray, list[int]]]


@pytest.fixture(scope="module", name="read", params=[SQUASH, KEEP])
def fixture_read(request: pytest.FixtureRequest) -> Read:
    """Traced once; and the aspect that it was traced with."""
    signature = [tf.TensorSpec([None], tf.string)]
    graph = tf.function(lambda data: read_batch(data, SIDE, request.param), signature)

    def read(files: list[bytes]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        (image, extent), status = graph(tf.constant(files, tf.string))
        return image.numpy(), extent.numpy(), status.numpy().tolist()

    read.aspect = request.param  # type: ignore[attr-defined]
    return read


def picture(mode: str = "RGB", size: tuple[int, int] = (120, 90)) -> Image.Image:
    """No two of its quarters are alike."""
    pixels = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), kind, exif=exif, **options)


def see_through() -> Image.Image:
    image = picture("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def sixteen_bits() -> Image.Image:
    ramp = np.random.default_rng(4).integers(0, 65536, (9, 12), np.uint16)
    return Image.fromarray(ramp.repeat(10, 0).repeat(10, 1))


FILES = {
    **{f"orientation {number}": turned(number) for number in range(10)},
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "progressive, turned": turned(8, progressive=True),
    "large": encoded(picture(size=(700, 500)), "JPEG"),
    "grey JPEG": encoded(picture("L"), "JPEG"),
    "CMYK JPEG": encoded(picture("CMYK"), "JPEG"),
    "PNG": encoded(picture(), "PNG"),
    "palette": encoded(picture("P"), "PNG"),
    "palette of 2 bits": encoded(picture().quantize(4), "PNG"),
    "palette with a transparent colour": encoded(
        picture("P"), "PNG", transparency=picture("P").getpixel((60, 40))
    ),
    "colour with a transparent colour": encoded(
        picture(), "PNG", transparency=picture().getpixel((60, 40))
    ),
    "alpha": encoded(see_through(), "PNG"),
    "grey alpha": encoded(see_through().convert("LA"), "PNG"),
    "alpha behind a profile": encoded(see_through(), "PNG", icc_profile=bytes(5000)),
    "turned PNG": turned(6, "PNG"),
    "turned PNG with a transparent colour": turned(
        5, "PNG", transparency=picture().getpixel((60, 40))
    ),
    "grey PNG": encoded(picture("L"), "PNG"),
    "grey of 1 bit": encoded(picture("1"), "PNG"),
    "grey of 16 bits": encoded(sixteen_bits(), "PNG"),
    "animated GIF": encoded(picture(), "GIF", save_all=True, append_images=[picture().rotate(180)]),
    "BMP": encoded(picture(), "BMP"),
}


@pytest.fixture(scope="module", name="seen")
def fixture_seen(read: Read) -> tuple[str, tuple[np.ndarray, np.ndarray, list[int]]]:
    """All files in one batch."""
    return read.aspect, read(list(FILES.values()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FILES)
def test_it_gives_what_its_canonical_bytes_give(
    seen: tuple[str, tuple[np.ndarray, np.ndarray, list[int]]], name: str
) -> None:
    aspect, (images, extents, statuses) = seen
    row = list(FILES).index(name)
    canonical = canonicalise(FILES[name]).data
    image, extent = prepare(tf.constant(canonical), SIDE, aspect)
    assert statuses[row] == Status.OK
    np.testing.assert_array_equal(extents[row], extent)
    if canonical == FILES[name]:
        np.testing.assert_array_equal(images[row], image)
    else:
        np.testing.assert_allclose(images[row], image, rtol=0, atol=1.0)


def test_every_orientation_is_another_picture() -> None:
    found = {canonicalise(FILES[f"orientation {number}"]).data for number in range(1, 9)}
    assert len(found) == 8


def cut(name: str) -> bytes:
    return FILES[name][: len(FILES[name]) // 2]


def claiming(size: tuple[int, int]) -> bytes:
    """A PNG whose header claims a size."""
    data = bytearray(FILES["PNG"])
    data[16:24] = struct.pack(">II", *size)
    return bytes(data)


BROKEN = {
    "empty": (b"", Status.NOT_AN_IMAGE),
    "one byte": (b"\xff", Status.NOT_AN_IMAGE),
    "a page": (b"<!doctype html><html></html>", Status.NOT_AN_IMAGE),
    "WebP": (encoded(picture(), "WEBP"), Status.NOT_AN_IMAGE),
    "a JPEG's start": (b"\xff\xd8\xff", Status.DECODE),
    "a PNG's start": (FILES["PNG"][:8], Status.DECODE),
    "half a JPEG": (cut("orientation 1"), Status.DECODE),
    "half a turned JPEG": (cut("orientation 6"), Status.DECODE),
    "half a PNG": (cut("PNG"), Status.DECODE),
    "half a PNG with alpha": (cut("alpha"), Status.DECODE),
    "a quarter of a GIF": (FILES["animated GIF"][: len(FILES["animated GIF"]) // 4], Status.DECODE),
    "half a BMP": (cut("BMP"), Status.DECODE),
    "BMP with a palette": (encoded(picture("P"), "BMP"), Status.DECODE),
    "60,000 a side": (claiming((60_000, 60_000)), Status.TOO_MANY_PIXELS),
    "2³¹ a side": (claiming((2**31, 2**31)), Status.TOO_MANY_PIXELS),
    "2³² a side": (claiming((2**32 - 1, 2**32 - 1)), Status.TOO_MANY_PIXELS),
    "32 MiB and a little": (FILES["PNG"] + bytes(32 * 2**20), Status.TOO_MANY_BYTES),
    "a tracking pixel": (encoded(picture(size=(1, 1)), "GIF"), Status.TOO_SMALL),
    "a thin line": (encoded(picture(size=(300, 7)), "JPEG"), Status.TOO_SMALL),
}


def test_what_cannot_be_read_says_why_and_fails_no_other(read: Read) -> None:
    good = [FILES["orientation 1"], FILES["alpha"]]
    alone, extents, statuses = read(good)
    assert statuses == [0, 0]
    files, expected = zip(*BROKEN.values(), strict=True)
    try:
        images, places, found = read([good[0], *files, good[1]])
    except tf.errors.OpError as error:
        pytest.fail(f"the whole batch fails: {error.message}")
    assert dict(zip(BROKEN, found[1:-1], strict=True)) == dict(zip(BROKEN, expected, strict=True))
    assert (found[0], found[-1]) == (Status.OK, Status.OK)
    np.testing.assert_array_equal(images[[0, -1]], alone)
    np.testing.assert_array_equal(places[[0, -1]], extents)
    np.testing.assert_array_equal(images[1:-1], 0.0)


def test_chunks_without_end_are_not_followed_for_ever(read: Read) -> None:
    """Their loop has a bound; a transparency behind them is not found."""
    chunk = struct.pack(">I4sI", 0, b"teXt", 0x63_A7_0C_5F)
    data = FILES["alpha"]
    many = data[:33] + chunk * 80_000 + data[33:]
    assert read([many])[2] in ([Status.OK], [Status.DECODE])


def test_nothing_readable_and_nothing_at_all(read: Read) -> None:
    assert read([b"", b"?"])[2] == [Status.NOT_AN_IMAGE] * 2
    images, _, statuses = read([])
    assert images.shape == (0, SIDE, SIDE, 3)
    assert statuses == []
