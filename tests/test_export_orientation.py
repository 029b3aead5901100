"""The orientation is found wherever a camera may have put it, and broken EXIF breaks nothing."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from export.orientation import exif_orientation

Find = Callable[[bytes], int]
SHORT, LONG, BYTE, ASCII = 3, 4, 1, 2


@pytest.fixture(scope="module", name="find")
def fixture_find() -> Find:
    graph = tf.function(exif_orientation, [tf.TensorSpec([], tf.string)])
    return lambda data: int(graph(tf.constant(data)))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def value(order: str, kind: int, number: int) -> bytes:
    code = {SHORT: "HH", LONG: "I", BYTE: "BBH", ASCII: "I"}[kind]
    return struct.pack(order + code, number, *[0] * (len(code) - 1))


def tiff(
    order: str = "<",
    entries: tuple[tuple[int, int, int], ...] = ((0x0112, SHORT, 6),),
    gap: int = 0,
    count: int | None = None,
) -> bytes:
    """A directory of (tag, type, value), `gap` bytes behind its header."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + gap)
    directory = struct.pack(order + "H", len(entries) if count is None else count)
    for tag, kind, number in entries:
        directory += struct.pack(order + "HHI", tag, kind, 1) + value(order, kind, number)
    return head + bytes(gap) + directory + bytes(4)


def photograph(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + segment(0xDA, bytes(10)) + bytes(100) + b"\xff\xd9"


def exif(content: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + content)


JFIF = segment(0xE0, b"JFIF\0" + bytes(9))
OTHERS = ((0x010F, ASCII, 7), (0x0112, SHORT, 8), (0x011A, LONG, 3))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        *((photograph(exif(tiff(entries=((0x0112, SHORT, n),)))), n) for n in range(1, 9)),
        *((photograph(exif(tiff(order, OTHERS, gap=30))), 8) for order in "<>"),
        *((photograph(exif(tiff(">", ((0x0112, kind, 3),)))), 3) for kind in (BYTE, SHORT, LONG)),
        (photograph(JFIF, exif(tiff())), 6),
        (photograph(segment(0xE2, bytes(60_000)), segment(0xE2, bytes(60_000)), exif(tiff())), 6),
        (photograph(JFIF, b"\xff\xff\xff", exif(tiff())), 6),
        # XMP has a segment of the same number.
        (photograph(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"), exif(tiff())), 6),
        # The last of two counts.
        (photograph(exif(tiff(entries=((0x0112, SHORT, 3), (0x0112, SHORT, 6))))), 6),
        # What is said after the pixels begin is none of theirs: a thumbnail, another picture.
        (photograph() + exif(tiff()), 1),
        (photograph(segment(0xDA, b""), exif(tiff())), 1),
        # Broken.
        (photograph(), 1),
        (photograph(exif(b"")), 1),
        (photograph(exif(b"II")), 1),
        (photograph(exif(tiff(entries=()))), 1),
        (photograph(exif(tiff(entries=((0x0112, SHORT, 0),)))), 1),
        (photograph(exif(tiff(entries=((0x0112, SHORT, 9),)))), 1),
        (photograph(exif(tiff(entries=((0x0112, ASCII, 6),)))), 1),
        (photograph(exif(tiff(">", ((0x0112, LONG, 2**31),)))), 1),
        (photograph(exif(tiff(count=60_000))), 6),
        (photograph(exif(b"II*\0\xff\xff\xff\xff" + tiff()[8:])), 1),
        (b"\xff\xd8" + exif(tiff()), 6),
        (b"\xff\xd8" + exif(tiff())[:20], 1),
        (b"\xff\xd8\xff", 1),
        # Not followed for ever.
        (photograph(b"\xff" * 250_000, exif(tiff())), 1),
    ],
)
def test_orientation(find: Find, data: bytes, expected: int) -> None:
    assert find(data) == expected


def test_any_bytes_have_an_orientation(find: Find) -> None:
    generator = np.random.default_rng(0)
    whole = np.frombuffer(photograph(JFIF, exif(tiff(entries=OTHERS))), np.uint8)
    for _ in range(1000):
        data = whole.copy()
        places = generator.integers(0, len(data), generator.integers(1, 8))
        data[places] = generator.integers(0, 256, len(places))
        length = generator.integers(0, len(data) + 1) if generator.random() < 0.3 else len(data)
        assert 1 <= find(data[:length].tobytes()) <= 8
