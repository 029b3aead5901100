"""model/record_check: what was written is read back; whatever was damaged is named."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from model.record_check import DamagedRecord, check_values, deserialise, read_frames
from model.records import Record, frame, serialise

SHAPE = (4, 3)
VOCABULARY, MAX_WORDS = 9, 3


def record(**changes: object) -> Record:
    grid = np.arange(12, dtype=np.float16).reshape(SHAPE)
    fields = {
        "image_id": 2**40,
        "key": "b/ü.jpg",
        "grid": grid,
        "captions": ("a dog", "ein Hund"),
        "tokens": ((4, 5), (8, 1, 3)),
        **changes,
    }
    return Record(**fields)  # type: ignore[arg-type]


def frames(data: bytes) -> list[bytes]:
    return list(read_frames(io.BytesIO(data), len(data)))


def test_frames_are_those_that_were_written() -> None:
    payloads = [b"", b"one", bytes(range(256)) * 40]
    assert frames(b"".join(map(frame, payloads))) == payloads
    assert frames(b"") == []


def test_frames_before_the_damage_are_read() -> None:
    data = frame(b"one") + frame(b"two")[:-1]
    found = read_frames(io.BytesIO(data), len(data))
    assert next(found) == b"one"
    with pytest.raises(DamagedRecord):
        next(found)


WHOLE = frame(b"first") + frame(b"second")  # 21 and 22 bytes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE[:25], "record 2 at byte 21 ends after 4 bytes, expected a whole one"),
        (WHOLE[:-1], "record 2 at byte 21 is said to have 22 bytes, expected at most the 21 left"),
        (
            struct.pack("<Q", 2**62) + WHOLE[8:],
            f"record 1 at byte 0 is said to have {2**62 + 16} bytes, expected at most the 43 left",
        ),
        (
            struct.pack("<Q", 4) + WHOLE[8:],
            "record 1 at byte 0: the CRC of its length does not match",
        ),
        (
            WHOLE[:34] + b"S" + WHOLE[35:],
            "record 2 at byte 21: the CRC of its content does not match",
        ),
        (
            WHOLE[:17] + b"\0" + WHOLE[18:],
            "record 1 at byte 0: the CRC of its content does not match",
        ),
        (b"\0" * 12 + WHOLE, "record 1 at byte 0: the CRC of its length does not match"),
    ],
)
def test_damaged_framing_is_named(data: bytes, message: str) -> None:
    with pytest.raises(DamagedRecord) as caught:
        frames(data)
    assert str(caught.value) == message


def test_what_was_serialised_is_read_back() -> None:
    for wanted in (record(), record(captions=("",), tokens=((),)), record(captions=(), tokens=())):
        found = deserialise(serialise(wanted), SHAPE)
        np.testing.assert_array_equal(found.grid, wanted.grid)
        assert np.asarray(found.grid).dtype == np.float16
        for name in ("image_id", "key", "captions", "tokens"):
            assert getattr(found, name) == getattr(wanted, name)


def edited(edit: Callable[[dict[str, tf.train.Feature]], None]) -> bytes:
    example = tf.train.Example.FromString(serialise(record()))
    edit(example.features.feature)
    return example.SerializeToString()


def ints(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def strings(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


ALL = "captions, grid, image_id, key, token_counts, tokens"


@pytest.mark.parametrize(
    ("name", "feature", "message"),
    [
        ("grid", None, f"features {ALL.replace('grid, ', '')}, expected {ALL}"),
        ("width", ints(3), f"features {ALL}, width, expected {ALL}"),
        ("image_id", strings(b"7"), "image_id is bytes_list, expected int64_list"),
        ("key", tf.train.Feature(), "key is None, expected bytes_list"),
        ("image_id", ints(), "0 values of image_id, expected one"),
        ("key", strings(b"a", b"b"), "2 values of key, expected one"),
        ("key", strings(b"\xff"), "key is not UTF-8 text"),
        ("grid", strings(b"\0" * 22), "grid of 22 bytes, expected 24 (4×3 float16)"),
        ("grid", strings(b"\0" * 48), "grid of 48 bytes, expected 24 (4×3 float16)"),
        ("captions", strings(b"a"), "2 token_counts, expected 1, one a caption"),
        ("captions", strings(b"a", b"\xff"), "captions is not UTF-8 text"),
        ("token_counts", ints(2, 2), "5 tokens, expected 4 as token_counts says"),
        ("token_counts", ints(6, -1), "5 tokens, expected 5 as token_counts says"),
        ("tokens", ints(4, 5), "2 tokens, expected 5 as token_counts says"),
    ],
)
def test_another_schema_is_named(name: str, feature: tf.train.Feature | None, message: str) -> None:
    def edit(features: dict[str, tf.train.Feature]) -> None:
        if feature is None:
            del features[name]
        else:
            features[name].CopyFrom(feature)

    with pytest.raises(DamagedRecord) as caught:
        deserialise(edited(edit), SHAPE)
    assert str(caught.value) == message


@pytest.mark.parametrize("payload", [b"\xff\xff", b"\x0a\x05ab"])
def test_what_is_no_example_is_named(payload: bytes) -> None:
    with pytest.raises(DamagedRecord, match=r"^not a tf\.train\.Example$"):
        deserialise(payload, SHAPE)


def test_an_empty_payload_has_no_features() -> None:
    with pytest.raises(DamagedRecord) as caught:
        deserialise(b"", SHAPE)
    assert str(caught.value) == f"features none, expected {ALL}"


def grid_with(value: float, count: int) -> np.ndarray:
    grid = np.zeros(SHAPE, np.float16)
    grid.ravel()[:count] = value
    return grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": grid_with(np.nan, 1)}, "grid with 1 values that are not finite, expected none"),
        ({"grid": grid_with(-np.inf, 2)}, "grid with 2 values that are not finite, expected none"),
        ({"captions": (), "tokens": ()}, "no caption, expected at least one"),
        ({"tokens": ((4,), ())}, "a caption of 0 tokens, expected 1 to 3"),
        ({"tokens": ((4,), (1, 2, 3, 4))}, "a caption of 4 tokens, expected 1 to 3"),
        ({"tokens": ((4,), (3, 9))}, "token 9, expected 1 to 8"),
        ({"tokens": ((4, 0), (3,))}, "token 0, expected 1 to 8"),
        ({"tokens": ((4, -1), (3,))}, "token -1, expected 1 to 8"),
    ],
)
def test_values_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DamagedRecord) as caught:
        check_values(record(**changes), VOCABULARY, MAX_WORDS)
    assert str(caught.value) == message


def test_a_sound_record_passes() -> None:
    check_values(record(), VOCABULARY, MAX_WORDS)
