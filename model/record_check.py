"""Reads a shard as a stranger's: framing, schema and values are checked before they are believed.

Training reads with `model.records.parse` and trusts the manifest; this is for whoever doubts it.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from model.errors import ItemFailure
from model.image_bytes import canonicalise
from model.records import (
    CONTENT_FEATURES,
    FEATURE_NAMES,
    GRID_DTYPE,
    GRIDS,
    NO_COMPRESSION,
    Record,
    frame,
)

_IMAGE_ID, _KEY, _CAPTIONS, _TOKENS, _TOKEN_COUNTS = FEATURE_NAMES
_INTS = (_IMAGE_ID, _TOKENS, _TOKEN_COUNTS)
# Length and its CRC before the payload, the payload's CRC behind it.
_HEADER_BYTES, _FOOTER_BYTES = 12, 4


class DamagedRecord(Exception):
    """What is wrong with a record or with the file that holds it: got and expected."""


class Stream(Protocol):
    """What a file opened for reading offers."""

    def read(self, size: int) -> bytes:
        """At most so many bytes; fewer at the end of the file alone."""


def read_frames(file: Stream, size: int) -> Iterator[bytes]:
    """The payloads of a TFRecord file, one in memory at a time; the reverse of `frame`.

    Args:
      file: at its beginning.
      size: of the file in bytes, so that a damaged length is not believed.

    Raises:
      DamagedRecord: the file ends inside a record, or a CRC does not match.
    """
    offset = number = 0
    while offset < size:
        number += 1
        place = f"record {number} at byte {offset}"
        header = file.read(min(_HEADER_BYTES, size - offset))
        if len(header) < _HEADER_BYTES:
            raise DamagedRecord(f"{place} ends after {len(header)} bytes, expected a whole one")
        (length,) = struct.unpack_from("<Q", header)
        whole = _HEADER_BYTES + length + _FOOTER_BYTES
        if offset + whole > size:
            raise DamagedRecord(
                f"{place} is said to have {whole} bytes, expected at most the {size - offset} left"
            )
        payload = file.read(length)
        footer = file.read(_FOOTER_BYTES)
        expected = frame(payload)
        if header != expected[:_HEADER_BYTES]:
            raise DamagedRecord(f"{place}: the CRC of its length does not match")
        if footer != expected[-_FOOTER_BYTES:]:
            raise DamagedRecord(f"{place}: the CRC of its content does not match")
        offset += whole
        yield payload


def deserialise(
    payload: bytes,
    grid_shape: tuple[int, int],
    compression: str = NO_COMPRESSION,
    content: str = GRIDS,
) -> Record:
    """Turn a serialised Example back into the record that `serialise` was given.

    Args:
      payload: of one record.
      grid_shape: (P, F) of the manifest.
      compression: of the manifest.
      content: of the manifest.

    Raises:
      DamagedRecord: other features, or values that do not fit each other.
    """
    try:
        features = tf.train.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise DamagedRecord("not a tf.train.Example") from error
    held = CONTENT_FEATURES[content]
    _check_features(features, {*FEATURE_NAMES, held})
    image_id = _one(features[_IMAGE_ID].int64_list.value, _IMAGE_ID)
    key = _text(_one(features[_KEY].bytes_list.value, _KEY), _KEY)
    stored = _one(features[held].bytes_list.value, held)
    is_grid = content == GRIDS
    grid = _grid(_inflated(stored, compression), grid_shape) if is_grid else None
    captions = [_text(value, _CAPTIONS) for value in features[_CAPTIONS].bytes_list.value]
    counts = list(features[_TOKEN_COUNTS].int64_list.value)
    flat = list(features[_TOKENS].int64_list.value)
    if len(counts) != len(captions):
        raise DamagedRecord(f"{len(counts)} token_counts, expected {len(captions)}, one a caption")
    if sum(counts) != len(flat) or min(counts, default=0) < 0:
        raise DamagedRecord(f"{len(flat)} tokens, expected {sum(counts)} as token_counts says")
    image = None if is_grid else stored
    return Record(image_id, key, grid, tuple(captions), tuple(_split(flat, counts)), image)


def check_values(record: Record, vocabulary_size: int, max_words: int) -> None:
    """Look at what a record of the right form holds.

    Args:
      record: to be checked.
      vocabulary_size: V.
      max_words: words beyond which captions are cut.

    Raises:
      DamagedRecord: a grid that is not finite, an image that is not canonical, no caption, a token
        that is no word, or a caption without words or with too many.
    """
    if record.grid is not None and (wrong := np.count_nonzero(~np.isfinite(record.grid))):
        raise DamagedRecord(f"grid with {wrong} values that are not finite, expected none")
    if record.image is not None:
        _check_image(record.image)
    if not record.captions:
        raise DamagedRecord("no caption, expected at least one")
    for tokens in record.tokens:
        if not 1 <= len(tokens) <= max_words:
            raise DamagedRecord(f"a caption of {len(tokens)} tokens, expected 1 to {max_words}")
        # 0 is padding, which no record holds.
        outside = [token for token in tokens if not 0 < token < vocabulary_size]
        if outside:
            raise DamagedRecord(f"token {outside[0]}, expected 1 to {vocabulary_size - 1}")


def _check_image(image: bytes) -> None:
    try:
        canonical = canonicalise(image)
    except ItemFailure as failure:
        raise DamagedRecord(f"image: {failure.message}") from failure
    if canonical.data != image:
        raise DamagedRecord("image that is not canonical, expected an upright RGB JPEG or PNG")


def _check_features(features: tf.train.Features, names: set[str]) -> None:
    if set(features) != names:
        raise DamagedRecord(
            f"features {', '.join(sorted(features)) or 'none'}, expected {', '.join(sorted(names))}"
        )
    for name in sorted(names):
        found = features[name].WhichOneof("kind")
        expected = "int64_list" if name in _INTS else "bytes_list"
        if found != expected:
            raise DamagedRecord(f"{name} is {found}, expected {expected}")


def _one(values: Sequence[Any], name: str) -> Any:
    if len(values) != 1:
        raise DamagedRecord(f"{len(values)} values of {name}, expected one")
    return values[0]


def _inflated(stored: bytes, compression: str) -> bytes:
    if compression == NO_COMPRESSION:
        return stored
    try:
        return zlib.decompress(stored)
    except zlib.error as error:
        raise DamagedRecord(f"grid is no {compression} stream ({error})") from error


def _grid(stored: bytes, grid_shape: tuple[int, int]) -> np.ndarray:
    dtype = np.dtype(GRID_DTYPE)
    expected = grid_shape[0] * grid_shape[1] * dtype.itemsize
    if len(stored) != expected:
        shape = "×".join(map(str, grid_shape))
        raise DamagedRecord(
            f"grid of {len(stored)} bytes, expected {expected} ({shape} {dtype.name})"
        )
    return np.frombuffer(stored, dtype).reshape(grid_shape)


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DamagedRecord(f"{name} is not UTF-8 text") from error


def _split(flat: Sequence[int], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    start = 0
    for count in counts:
        yield tuple(flat[start : start + count])
        start += count
