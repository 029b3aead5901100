"""Records → batches for the trainer and for free-running decoding, through tf.data.

The training stream is a pure function of (seed, records, batch size): epoch after epoch,
each a shuffle of its own, batched across the seam between epochs so that every batch is
full and no image is repeated or left out. A resumed run skips to the record at which it
stopped, before anything is parsed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.errors import InvalidInput
from model.preprocessing import Prepared, prepare_batch
from model.records import IMAGES, Manifest, parse
from model.vocabulary import Vocabulary

TRAIN_SPLIT = "train"
# Batch of records → grids [N, P, F]: they hold them, or an encoder looks at their images.
Grids = Callable[[Mapping[str, tf.Tensor]], tf.Tensor]
SHARDS_AT_ONCE = 8
# Read ahead of the parser; a record is about 200 KB.
_PREFETCH_BATCHES = 2
# What a captioner or its encoder looks at; a batch has either.
_LOOKS = ("grid", *Prepared._fields)
# More than the blocks of any epoch, so that no two epochs share a draw.
_DRAWS_AN_EPOCH = 2**32


@dataclass(frozen=True)
class Split:
    """One split of a records directory.

    Attributes:
      directory: RECORDS.
      manifest: of the directory.
      name: of the split.

    Raises:
      InvalidInput: no such split, or a shard that is not there as the manifest says.
    """

    directory: Path
    manifest: Manifest
    name: str

    def __post_init__(self) -> None:
        """Look at every shard now: TensorFlow would meet a lost one in the middle of an epoch."""
        for shard in self.manifest.shards(self.name):
            path = self.directory / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                found = "no such file" if size is None else f"{size} bytes"
                raise InvalidInput(
                    f"{path}: {found}, expected the {shard.bytes} bytes that the manifest names; "
                    f"{self._remedy}"
                )

    @property
    def files(self) -> list[str]:
        """Paths of the shards, in order."""
        return [str(self.directory / shard.file) for shard in self.manifest.shards(self.name)]

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return self.manifest.num_images(self.name)

    def parse(self, serialised: tf.Tensor) -> dict[str, Any]:
        """Read records as the manifest says: string [N] → features.

        Returns:
          What records.parse returns. Images are prepared for the encoder, in a graph: "image"
          float32 [N, S, S, 3] and "extent" int32 [N, 2].
        """
        manifest = self.manifest
        parsed = parse(serialised, manifest.grid_shape, manifest.compression, manifest.content)
        if manifest.content == IMAGES:
            size, aspect = manifest.image_size, manifest.aspect
            parsed |= prepare_batch(parsed["image"], size, aspect)._asdict()
        return parsed

    def iterate(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Batches of this split, one by one.

        Raises:
          InvalidInput: a shard holds other bytes than were written; TensorFlow says not which.
        """
        try:
            yield from batches
        except tf.errors.DataLossError as error:
            raise InvalidInput(
                f"{self.directory}: a shard of split {self.name!r} is damaged; {self._remedy}"
            ) from error

    @property
    def _remedy(self) -> str:
        return f"mend it with `captionbeam preprocess --check {self.directory} --repair`"


@dataclass(frozen=True)
class Stream:
    """The order in which training sees its records.

    Attributes:
      seed: of every epoch's shuffle.
      shuffle_buffer: records held to be shuffled.
      batch_size: images a step, over all replicas.
      first_step: steps that earlier runs took.
    """

    seed: int
    shuffle_buffer: int
    batch_size: int
    first_step: int = 0


def training_batches(
    split: Split,
    vocabulary: Vocabulary,
    stream: Stream,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Endless batches for teacher forcing.

    Args:
      split: what to train on.
      vocabulary: special ids.
      stream: order and position.
      context: which pipeline of how many this is; None is the only one. A step's batch is
        cut into equal parts, one a replica, in replica order.

    Yields:
      {"grid": float16 [N, P, F], "inputs": int32 [M, T] from `<start>` on,
       "labels": int32 [M, T] with `<end>` last, "image_index": int32 [M]}; of records of images
      "image" and "extent" (Split.parse) instead of "grid".

    Raises:
      InvalidInput: an empty split.
    """
    if split.num_images == 0:
        raise InvalidInput(f"split {split.name!r} has no images; see failures.jsonl of the records")
    records = _endless(split, stream).batch(stream.batch_size, drop_remainder=True)
    if context is not None and context.num_replicas_in_sync > 1:
        records = _parts(records, stream.batch_size, context)
    return records.map(
        lambda serialised: _teacher_forcing(split.parse(serialised), vocabulary),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    ).prefetch(_PREFETCH_BATCHES)


def batch_keys(split: Split, stream: Stream) -> list[str]:
    """Keys of the images that a stream's first step sees."""
    records = _endless(split, stream).batch(stream.batch_size, drop_remainder=True)
    (serialised,) = records.take(1)
    return [key.decode() for key in split.parse(serialised)["key"].numpy()]


def _endless(split: Split, stream: Stream) -> tf.data.Dataset:
    """Serialised records from the first step on."""
    consumed = stream.first_step * stream.batch_size
    epoch, offset = divmod(consumed, split.num_images)
    later = tf.data.Dataset.counter(epoch + 1).flat_map(
        lambda number: _epoch(split.files, stream, number)
    )
    return _epoch(split.files, stream, tf.constant(epoch, tf.int64)).skip(offset).concatenate(later)


def _epoch(files: list[str], stream: Stream, epoch: tf.Tensor) -> tf.data.Dataset:
    """One pass over the records, in the order of (seed, epoch).

    Shards are opened in a drawn order, several at once, and blocks of `shuffle_buffer`
    records are permuted: stateless draws, so that no shuffle state has to be kept.
    """

    def draw(number: tf.Tensor | int) -> tf.Tensor:
        place = epoch * _DRAWS_AN_EPOCH + tf.cast(number, tf.int64)
        return tf.stack([tf.constant(stream.seed, tf.int64), place])

    def permuted(number: tf.Tensor, block: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(block, seed=draw(number + 1))
        return tf.data.Dataset.from_tensor_slices(order)

    order = tf.random.experimental.stateless_shuffle(tf.constant(files), seed=draw(0))
    records = tf.data.Dataset.from_tensor_slices(order).interleave(
        tf.data.TFRecordDataset, cycle_length=SHARDS_AT_ONCE
    )
    return records.batch(stream.shuffle_buffer).enumerate().flat_map(permuted)


def _parts(
    records: tf.data.Dataset, batch_size: int, context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """The parts of every batch that belong to this pipeline's replicas, one after another."""
    replicas = context.num_replicas_in_sync
    here = replicas // context.num_input_pipelines
    first = context.input_pipeline_id * here

    def cut(batch: tf.Tensor) -> tf.data.Dataset:
        parts = tf.reshape(batch, [replicas, batch_size // replicas])
        return tf.data.Dataset.from_tensor_slices(parts[first : first + here])

    return records.flat_map(cut)


def _teacher_forcing(parsed: dict[str, Any], vocabulary: Vocabulary) -> dict[str, tf.Tensor]:
    captions = parsed["tokens"]
    words = captions.merge_dims(0, 1)
    rows = words.nrows()
    start = tf.fill([rows, 1], vocabulary.start_id)
    end = tf.fill([rows, 1], vocabulary.end_id)
    return {
        **{name: parsed[name] for name in _LOOKS if name in parsed},
        "inputs": tf.concat([start, words], axis=1).to_tensor(vocabulary.pad_id),
        "labels": tf.concat([words, end], axis=1).to_tensor(vocabulary.pad_id),
        "image_index": tf.cast(captions.value_rowids(), tf.int32),
    }


def images(split: Split, batch_size: int, limit: int = 0) -> Iterator[dict[str, Any]]:
    """Every image of a split once, in shard order, for free-running decoding.

    Args:
      split: what to read.
      batch_size: N; the last batch may be shorter.
      limit: most images; 0 is all.

    Yields:
      What Split.parse returns.

    Raises:
      InvalidInput: a damaged shard.
    """
    records = tf.data.TFRecordDataset(split.files)
    if limit:
        records = records.take(limit)
    return split.iterate(records.batch(batch_size).map(split.parse).prefetch(_PREFETCH_BATCHES))


def stored_grids(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The grids that records hold: float16 [N, P, F]."""
    return batch["grid"]


def grid_statistics(
    split: Split, batch_size: int, limit: int, grids: Grids = stored_grids
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every channel over the cells of a split's first images.

    Args:
      split: the training split.
      batch_size: images read at once.
      limit: most images.
      grids: batch → [N, P, F].

    Returns:
      Mean and variance, float32 [F] each.
    """
    features = split.manifest.grid_shape[1]
    count, total, squares = 0, np.zeros(features), np.zeros(features)
    for batch in images(split, batch_size, limit):
        cells = grids(batch).numpy().reshape(-1, features).astype(np.float64)
        count += len(cells)
        total += cells.sum(axis=0)
        squares += np.square(cells).sum(axis=0)
    mean = total / count
    variance = np.maximum(squares / count - np.square(mean), 0.0)
    return mean.astype(np.float32), variance.astype(np.float32)
