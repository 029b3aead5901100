"""The record: one table that writes and reads it, and the manifest that vouches for it.

RECORDS/ holds `SPLIT-00000-of-00004.tfrecord` (one Example an image), `vocabulary.json`,
`failures.jsonl` and, written last, `manifest.json`.
"""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf

from model.errors import InvalidInput

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"
VOCABULARY_FILE = "vocabulary.json"
FAILURES_FILE = "failures.jsonl"
RECORD_SUFFIX = ".tfrecord"
GRID_DTYPE = np.float16
NO_COMPRESSION, ZLIB = COMPRESSIONS = ("none", "zlib")
"""How a record keeps its grid; TensorFlow inflates zlib in its graph."""
GRIDS, IMAGES = CONTENTS = ("grids", "images")
"""What a record holds of its image: the encoder's grid, or the bytes that an encoder looks at."""
# Ends the key of a record that is the mirror image of the one before it.
FLIP_MARK = "#flip"

_IMAGE_ID, _KEY, _GRID, _CAPTIONS = "image_id", "key", "grid", "captions"
_TOKENS, _TOKEN_COUNTS = "tokens", "token_counts"
_IMAGE = "image"
# What a record holds beside its content, in this order for whoever checks one (model/record_check).
FEATURE_NAMES = (_IMAGE_ID, _KEY, _CAPTIONS, _TOKENS, _TOKEN_COUNTS)
# Where its content lies.
CONTENT_FEATURES = {GRIDS: _GRID, IMAGES: _IMAGE}
_TOKENS_FEATURE = tf.io.RaggedFeature(
    tf.int64, value_key=_TOKENS, partitions=[tf.io.RaggedFeature.RowLengths(_TOKEN_COUNTS)]
)
_CRC_MASK_DELTA = 0xA282EAD8
# Level 6 takes 2 to 5 times as long for 3 to 14 % fewer bytes (docs/preprocessing.md).
_ZLIB_LEVEL = 1


@dataclass(frozen=True, eq=False)
class Record:
    """One image of a split; it has either a grid or an image.

    Attributes:
      image_id: id in the source annotations.
      key: the image's file name in the source, with FLIP_MARK for its mirror image; unique
        within a split.
      grid: float16 [P, F], cells row-major from the top left.
      captions: raw captions, in the source's order.
      tokens: for each caption the ids of its words, no special ids.
      image: canonical bytes (model/image_bytes).
    """

    image_id: int
    key: str
    grid: np.ndarray | None
    captions: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    image: bytes | None = None


def serialise(record: Record, compression: str = NO_COMPRESSION) -> bytes:
    """Turn a record into a serialised tf.train.Example; a grid in one of COMPRESSIONS."""
    flat = [token for caption in record.tokens for token in caption]
    # Filled in place: put together from messages, a grid is copied into each in turn.
    example = tf.train.Example()
    features = example.features.feature
    features[_IMAGE_ID].int64_list.value.append(record.image_id)
    features[_KEY].bytes_list.value.append(record.key.encode())
    if record.image is not None:
        features[_IMAGE].bytes_list.value.append(record.image)
    else:
        features[_GRID].bytes_list.value.append(_packed(record.grid, compression))
    features[_CAPTIONS].bytes_list.value.extend(caption.encode() for caption in record.captions)
    features[_TOKENS].int64_list.value.extend(flat)
    features[_TOKEN_COUNTS].int64_list.value.extend(len(caption) for caption in record.tokens)
    return example.SerializeToString(deterministic=True)


def _packed(grid: np.ndarray | None, compression: str) -> bytes:
    stored = np.ascontiguousarray(grid, GRID_DTYPE).tobytes()
    return zlib.compress(stored, _ZLIB_LEVEL) if compression == ZLIB else stored


def parse(
    serialised: tf.Tensor,
    grid_shape: Sequence[int],
    compression: str = NO_COMPRESSION,
    content: str = GRIDS,
) -> dict[str, Any]:
    """Read a batch of serialised Examples, inside tf.data or eagerly.

    Args:
      serialised: string [N].
      grid_shape: (P, F) of the manifest.
      compression: of the manifest.
      content: of the manifest.

    Returns:
      image_id int64 [N], key string [N], grid float16 [N, P, F] or image string [N], captions
      string ragged [N, C], tokens int32 ragged [N, C, T].
    """
    spec = {
        _IMAGE_ID: tf.io.FixedLenFeature([], tf.int64),
        _KEY: tf.io.FixedLenFeature([], tf.string),
        CONTENT_FEATURES[content]: tf.io.FixedLenFeature([], tf.string),
        _CAPTIONS: tf.io.RaggedFeature(tf.string),
        _TOKENS: _TOKENS_FEATURE,
    }
    parsed = tf.io.parse_example(serialised, spec)
    if content == GRIDS:
        stored = parsed[_GRID]
        if compression == ZLIB:
            stored = tf.io.decode_compressed(stored, "ZLIB")
        parsed[_GRID] = tf.reshape(tf.io.decode_raw(stored, tf.float16), [-1, *grid_shape])
    parsed[_TOKENS] = tf.cast(parsed[_TOKENS], tf.int32)
    return parsed


def parse_tokens(serialised: tf.Tensor) -> tf.RaggedTensor:
    """Read nothing but the captions' ids: string [N] → int32 ragged [N, C, T]."""
    parsed = tf.io.parse_example(serialised, {_TOKENS: _TOKENS_FEATURE})
    return tf.cast(parsed[_TOKENS], tf.int32)


def frame(payload: bytes) -> bytes:
    """Wrap a payload as one record of a TFRecord file (length, payload, masked CRC-32C)."""
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc(length) + payload + _masked_crc(payload)


def shard_name(split: str, index: int, num_shards: int) -> str:
    """`train-00003-of-00064`, without a suffix."""
    return f"{split}-{index:05d}-of-{num_shards:05d}"


@dataclass(frozen=True)
class ShardInfo:
    """A finished shard: file name, records, captions, size in bytes, SHA-256 of the file."""

    file: str
    records: int
    captions: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a RECORDS directory holds; its presence says that the directory is complete.

    Attributes:
      preprocessing: every choice between image bytes and grid (model/preprocessing.choices).
      fingerprint: digest of these.
      grid_shape: (P, F).
      encoder: {"name", "weights", "digest", "runtime", "precision"}; of records of images, the
        one with which fine-tuning begins.
      vocabulary: {"digest", "size", "min_word_count"}.
      max_words: words of a caption beyond which it is cut.
      splits: shards by split name.
      ledger: {"inputs", "written", "failed": {reason: images}, "skipped"} over images.
      caption_ledger: {"inputs", "written", "failed": {reason: captions}, "skipped", "cut"}.
      compression: how records keep their grids; one of COMPRESSIONS.
      flip_copies: records of the training split that are mirror images; None where none were
        asked for.
      content: what records hold of their images; one of CONTENTS.
    """

    preprocessing: Mapping[str, Any]
    fingerprint: str
    grid_shape: tuple[int, int]
    encoder: Mapping[str, str]
    vocabulary: Mapping[str, Any]
    max_words: int
    splits: Mapping[str, tuple[ShardInfo, ...]]
    ledger: Mapping[str, Any]
    caption_ledger: Mapping[str, Any]
    compression: str = NO_COMPRESSION
    flip_copies: int | None = None
    content: str = GRIDS
    schema_version: int = SCHEMA_VERSION

    @property
    def image_size(self) -> int:
        """Side in pixels of the encoder's input."""
        return int(self.preprocessing["image_size"])

    @property
    def grid_size(self) -> int:
        """Cells a side; P is its square."""
        return int(self.preprocessing["grid_size"])

    @property
    def aspect(self) -> str:
        """How photographs were brought into the encoder's square."""
        return str(self.preprocessing["aspect"])

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
            manifest = cls(**fields)
            # What every user asks for; a manifest without it is none of ours.
            _ = manifest.image_size, manifest.grid_size, manifest.aspect
            _ = CONTENT_FEATURES[manifest.content]
            return manifest
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
        """Records of a split, mirror images among them."""
        return sum(shard.records for shard in self.shards(split))

    def shards(self, split: str) -> tuple[ShardInfo, ...]:
        """Shards of a split, or InvalidInput naming the splits there are."""
        if split not in self.splits:
            raise InvalidInput(
                f"no split {split!r} in the records, expected one of {sorted(self.splits)}"
            )
        return self.splits[split]


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    masked = (((crc >> 15) | (crc << 17)) + _CRC_MASK_DELTA) & 0xFFFFFFFF
    return struct.pack("<I", masked)
