"""The record: one table that writes and reads it, and the manifest that vouches for it.

RECORDS/ holds `SPLIT-00000-of-00004.tfrecord` (one Example an image), `vocabulary.json`,
`failures.jsonl` and, written last, `manifest.json`.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf

from model.errors import InvalidInput

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
VOCABULARY_FILE = "vocabulary.json"
FAILURES_FILE = "failures.jsonl"
RECORD_SUFFIX = ".tfrecord"
GRID_DTYPE = np.float16

_IMAGE_ID, _KEY, _GRID, _CAPTIONS = "image_id", "key", "grid", "captions"
_TOKENS, _TOKEN_COUNTS = "tokens", "token_counts"
# All that a record holds, in this order for whoever checks one (model/record_check).
FEATURE_NAMES = (_IMAGE_ID, _KEY, _GRID, _CAPTIONS, _TOKENS, _TOKEN_COUNTS)
_CRC_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True, eq=False)
class Record:
    """One image of a split.

    Attributes:
      image_id: id in the source annotations.
      key: the image's file name in the source; unique within a split.
      grid: float16 [P, F], cells row-major from the top left.
      captions: raw captions, in the source's order.
      tokens: for each caption the ids of its words, no special ids.
    """

    image_id: int
    key: str
    grid: np.ndarray
    captions: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]


def serialise(record: Record) -> bytes:
    """Turn a record into a serialised tf.train.Example."""
    flat = [token for caption in record.tokens for token in caption]
    features = {
        _IMAGE_ID: _ints([record.image_id]),
        _KEY: _strings([record.key.encode()]),
        _GRID: _strings([np.ascontiguousarray(record.grid, GRID_DTYPE).tobytes()]),
        _CAPTIONS: _strings([caption.encode() for caption in record.captions]),
        _TOKENS: _ints(flat),
        _TOKEN_COUNTS: _ints([len(caption) for caption in record.tokens]),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def parse(serialised: tf.Tensor, grid_shape: Sequence[int]) -> dict[str, Any]:
    """Read a batch of serialised Examples, inside tf.data or eagerly.

    Args:
      serialised: string [N].
      grid_shape: (P, F) of the manifest.

    Returns:
      image_id int64 [N], key string [N], grid float16 [N, P, F], captions string ragged
      [N, C], tokens int32 ragged [N, C, T].
    """
    spec = {
        _IMAGE_ID: tf.io.FixedLenFeature([], tf.int64),
        _KEY: tf.io.FixedLenFeature([], tf.string),
        _GRID: tf.io.FixedLenFeature([], tf.string),
        _CAPTIONS: tf.io.RaggedFeature(tf.string),
        _TOKENS: tf.io.RaggedFeature(
            tf.int64,
            value_key=_TOKENS,
            partitions=[tf.io.RaggedFeature.RowLengths(_TOKEN_COUNTS)],
        ),
    }
    parsed = tf.io.parse_example(serialised, spec)
    parsed[_GRID] = tf.reshape(tf.io.decode_raw(parsed[_GRID], tf.float16), [-1, *grid_shape])
    parsed[_TOKENS] = tf.cast(parsed[_TOKENS], tf.int32)
    return parsed


def frame(payload: bytes) -> bytes:
    """Wrap a payload as one record of a TFRecord file (length, payload, masked CRC-32C)."""
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc(length) + payload + _masked_crc(payload)


def shard_name(split: str, index: int, num_shards: int) -> str:
    """`train-00003-of-00064`, without a suffix."""
    return f"{split}-{index:05d}-of-{num_shards:05d}"


@dataclass(frozen=True)
class ShardInfo:
    """A finished shard: file name, images, captions, size in bytes, SHA-256 of the file."""

    file: str
    records: int
    captions: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a RECORDS directory holds; its presence says that the directory is complete.

    Attributes:
      fingerprint: digest of the preprocessing choices (model/preprocessing).
      image_size: side in pixels of the encoder's input.
      grid_size: cells a side; P is its square.
      grid_shape: (P, F).
      encoder: {"name", "weights", "digest"}.
      vocabulary: {"digest", "size", "min_word_count"}.
      max_words: words of a caption beyond which it is cut.
      splits: shards by split name.
      ledger: {"inputs", "written", "failed": {reason: images}, "skipped"} over images.
      caption_ledger: {"inputs", "written", "failed": {reason: captions}, "cut"}.
    """

    fingerprint: str
    image_size: int
    grid_size: int
    grid_shape: tuple[int, int]
    encoder: Mapping[str, str]
    vocabulary: Mapping[str, Any]
    max_words: int
    splits: Mapping[str, tuple[ShardInfo, ...]]
    ledger: Mapping[str, Any]
    caption_ledger: Mapping[str, Any]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Canonical text: the same manifest always has the same bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Manifest":
        """Read `to_json`'s text; `source` names it in errors."""
        try:
            fields = json.loads(text)
            found = fields.get("schema_version")
            if found != SCHEMA_VERSION:
                raise InvalidInput(
                    f"{source}: schema version {found}, expected {SCHEMA_VERSION}; "
                    "run preprocess again with this version of captionbeam"
                )
            fields["grid_shape"] = tuple(fields["grid_shape"])
            fields["splits"] = {
                split: tuple(ShardInfo(**shard) for shard in shards)
                for split, shards in fields["splits"].items()
            }
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(
                f"{source}: not a manifest of captionbeam ({error}); run preprocess again"
            ) from error

    @classmethod
    def load(cls, directory: str | Path) -> "Manifest":
        """Read the manifest of a RECORDS or MODEL_DIR directory.

        Raises:
          InvalidInput: no manifest (preprocessing was interrupted), or not one of ours.
        """
        path = Path(directory) / MANIFEST_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidInput(
                f"{directory}: no {MANIFEST_FILE}, expected a finished records directory; run "
                "`captionbeam preprocess` again with the same flags, it goes on where it stopped"
            ) from error
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{path}: not UTF-8 text ({error.reason}); restore it") from error
        return cls.from_json(text, str(path))

    def num_images(self, split: str) -> int:
        """Images written for a split."""
        return sum(shard.records for shard in self.shards(split))

    def shards(self, split: str) -> tuple[ShardInfo, ...]:
        """Shards of a split, or InvalidInput naming the splits there are."""
        if split not in self.splits:
            raise InvalidInput(
                f"no split {split!r} in the records, expected one of {sorted(self.splits)}"
            )
        return self.splits[split]


def _ints(values: Sequence[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _strings(values: Sequence[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    masked = (((crc >> 15) | (crc << 17)) + _CRC_MASK_DELTA) & 0xFFFFFFFF
    return struct.pack("<I", masked)
