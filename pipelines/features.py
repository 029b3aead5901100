"""What a preprocessing shard does: image bytes → ResNet50 grids → records."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import tensorflow as tf
from apache_beam.utils.shared import Shared

from model import records
from model.errors import ItemFailure, Reason
from model.image_bytes import canonicalise
from model.preprocessing import prepare
from model.vocabulary import Vocabulary
from pipelines import coco, storage
from pipelines.image_files import read_item
from pipelines.jobs import Item
from pipelines.read_ahead import batches, read_ahead
from pipelines.sink import Sink

BATCH = 32
# More threads than cores hide the latency of a bucket; decoding itself scales to the cores.
_THREADS = min(8, 2 * (os.cpu_count() or 1))

# Names of a ShardResult's counts.
CAPTIONS = "captions"
CUT_CAPTIONS = "cut_captions"
# Valid captions lost with their image: this, then the image's reason.
LOST_CAPTIONS = "lost_captions_"


class GridEncoder(Protocol):
    """What this stage needs of model.encoder.Encoder."""

    digest: str
    grid_shape: tuple[int, int]

    def __call__(self, images: np.ndarray) -> tf.Tensor:
        """float32 [N, S, S, 3] → float32 [N, P, F]."""


@dataclass(frozen=True)
class Features:
    """The ShardWork of preprocessing; travels to the workers, so it holds settings only.

    Attributes:
      make_encoder: called once a process.
      shared: hands the same encoder to every thread of a process.
      image_size: side of the encoder's input in pixels.
      vocabulary: path of vocabulary.json.
      max_words: words beyond which a caption is cut.
    """

    make_encoder: Callable[[], GridEncoder]
    shared: Shared
    image_size: int
    vocabulary: str
    max_words: int

    def setup(self) -> None:
        """Load the encoder, or find it loaded."""
        self.shared.acquire(self.make_encoder)

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        """Write a record for every image that can be read and has a valid caption."""
        encoder = self.shared.acquire(self.make_encoder)
        captioner = _Captions(_load_vocabulary(self.vocabulary), self.max_words)
        load = partial(_load, preparer=_preparer(self.image_size))
        loaded = read_ahead(items, load, threads=_THREADS, ahead=2 * BATCH)
        for batch in batches(loaded, BATCH):
            for item, grid in _encode(encoder, batch):
                captioner.write(item, grid, sink)


@dataclass(frozen=True)
class _Captions:
    """Turns an image's captions into tokens and its outcome into a record or failure rows."""

    vocabulary: Vocabulary
    max_words: int

    def write(self, item: Item, grid: np.ndarray | ItemFailure, sink: Sink) -> None:
        captions: list[str] = []
        tokens: list[tuple[int, ...]] = []
        cut = 0
        for annotation_id, caption in item["captions"]:
            try:
                words = coco.words_of(annotation_id, caption)
            except ItemFailure as failure:
                sink.fail_part(item, failure)
                continue
            captions.append(caption)
            tokens.append(tuple(self.vocabulary.encode_words(words[: self.max_words])))
            cut += len(words) > self.max_words
        if isinstance(grid, ItemFailure):
            sink.fail(item, grid, **{LOST_CAPTIONS + grid.reason: len(captions)})
        elif not captions:
            count = len(item["captions"])
            message = f"none of its {count} captions is valid, expected at least one"
            sink.fail(item, ItemFailure(Reason.NO_VALID_CAPTION, message))
        else:
            record = records.Record(
                item["image_id"], item["key"], grid, tuple(captions), tuple(tokens)
            )
            payload = records.frame(records.serialise(record))
            sink.write(payload, **{CAPTIONS: len(captions), CUT_CAPTIONS: cut})


def _load(item: Item, preparer: Callable[[tf.Tensor], tf.Tensor]) -> np.ndarray:
    """Read, validate, decode and normalise one image: float32 [S, S, 3]."""
    canonical = canonicalise(read_item(item))
    try:
        return preparer(tf.constant(canonical.data)).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ItemFailure(
            Reason.DECODE, f"Pillow reads it, TensorFlow does not: {error.message}"
        ) from error


def _encode(
    encoder: GridEncoder, batch: Sequence[tuple[Item, np.ndarray | ItemFailure]]
) -> Iterator[tuple[Item, np.ndarray | ItemFailure]]:
    """Images → grids float16 [P, F], in order; failures pass through."""
    images = [image for _, image in batch if not isinstance(image, ItemFailure)]
    grids = iter(np.asarray(encoder(np.stack(images))) if images else ())
    for item, image in batch:
        yield item, image if isinstance(image, ItemFailure) else _to_storage(next(grids))


def _to_storage(grid: np.ndarray) -> np.ndarray | ItemFailure:
    # Beyond float16 becomes infinite, which is what the check looks for.
    with np.errstate(over="ignore"):
        stored = grid.astype(records.GRID_DTYPE)
    if np.isfinite(stored).all():
        return stored
    largest = float(np.abs(grid).max())
    return ItemFailure(
        Reason.NOT_FINITE,
        f"grid values to {largest:g}, expected at most {np.finfo(records.GRID_DTYPE).max:g}",
    )


@lru_cache(maxsize=2)
def _preparer(image_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """`prepare` as one graph: fewer steps in Python, where the reading threads meet."""
    return tf.function(
        partial(prepare, image_size=image_size), input_signature=[tf.TensorSpec([], tf.string)]
    )


def _load_vocabulary(path: str) -> Vocabulary:
    return Vocabulary.from_json(storage.read_bytes(path).decode(), path)
