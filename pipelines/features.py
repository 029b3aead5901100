"""What a preprocessing shard does: image bytes → canonical bytes or ResNet50 grids → records."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import tensorflow as tf
from apache_beam.utils.shared import Shared

from model import records
from model.errors import InvalidInput, ItemFailure, Reason
from model.image_bytes import canonicalise
from model.vocabulary import Vocabulary
from pipelines import coco
from pipelines.encoding import Encoding, GridEncoder, View
from pipelines.image_files import read_item
from pipelines.jobs import Item
from pipelines.preparing import shared_preparer
from pipelines.read_ahead import batches, read_ahead
from pipelines.records_files import read_vocabulary
from pipelines.sink import Sink
from pipelines.wording import short

# More threads than cores hide the latency of a bucket; decoding itself scales to the cores.
READ_THREADS = min(8, 2 * (os.cpu_count() or 1))

# Names of a ShardResult's counts.
CAPTIONS = "captions"
CUT_CAPTIONS = "cut_captions"
FLIPS = "flip_copies"
FLIP_CAPTIONS = "flip_captions"
# Valid captions lost with their image: this, then the image's reason.
LOST_CAPTIONS = "lost_captions_"

_Content = np.ndarray | bytes
_Prepare = Callable[[bytes], np.ndarray]
_Loaded = TypeVar("_Loaded")

# An item's field: its mirror image becomes a record of its own.
FLIP = "flip"
# What a caption that begins so says is not true of the mirror image.
_SIDES = ("left", "right")


@dataclass(frozen=True)
class FeatureSettings:
    """What a shard is made with, besides the encoder.

    Attributes:
      image_size: S, side of the encoder's input in pixels.
      aspect: how a photograph is brought into it.
      compression: how a record keeps its grid.
      max_words: words beyond which a caption is cut.
      read_threads: images read and decoded at once; decides no byte.
      content: what a record holds of its image.
    """

    image_size: int
    aspect: str
    compression: str
    max_words: int
    read_threads: int = READ_THREADS
    content: str = records.GRIDS


@dataclass(frozen=True)
class Features:
    """The ShardWork of preprocessing; travels to the workers, so it holds settings only.

    Attributes:
      make_encoder: called once a process.
      shared: hands the same encoder to every thread of a process.
      encoder_digest: what the manifest says of the encoder's weights.
      vocabulary: path of vocabulary.json.
      settings: everything else.
    """

    make_encoder: Callable[[], GridEncoder]
    shared: Shared
    encoder_digest: str
    vocabulary: str
    settings: FeatureSettings

    def setup(self) -> None:
        """Load the encoder, or find it loaded; records of images need none.

        Raises:
          InvalidInput: it is not the one that the launcher loaded.
        """
        if self.settings.content == records.IMAGES:
            return
        found = self.shared.acquire(self.make_encoder).digest
        if found != self.encoder_digest:
            raise InvalidInput(
                f"a worker on {socket.gethostname()} loads encoder weights {short(found)}, the "
                f"launcher loaded {short(self.encoder_digest)}; put the same weights file at the "
                "same path on every machine"
            )

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        """Write a record for every image that can be read and has a valid caption."""
        writer = _Records(read_vocabulary(self.vocabulary), self.settings, sink)
        if self.settings.content == records.IMAGES:
            for item, image in self._read(items, _canonical, self.settings.read_threads):
                writer.write(item, image)
            return
        for view, grid in self._encoded(items):
            if view.flipped:
                writer.write_copy(view.item, grid)
            else:
                writer.write(view.item, grid)

    def _read(
        self, items: Sequence[Item], load: Callable[[Item, _Prepare], _Loaded], ahead: int
    ) -> Iterator[tuple[Item, _Loaded | ItemFailure]]:
        """Load every item in threads, so many of them ahead."""
        settings = self.settings
        prepare = shared_preparer(settings.image_size, settings.aspect)
        return read_ahead(
            items, lambda item: load(item, prepare), threads=settings.read_threads, ahead=ahead
        )

    def _encoded(self, items: Sequence[Item]) -> Iterator[tuple[View, np.ndarray | ItemFailure]]:
        """Every image, and its mirror image where that is asked for, with its grid."""
        encoder = self.shared.acquire(self.make_encoder)
        size, at_once = encoder.batch_size, encoder.concurrency
        # Few, since each image is S × S × 3 floats; enough for every thread to have one.
        loaded = self._read(items, _load, max(size, self.settings.read_threads))
        views = len(items) + sum(bool(item.get(FLIP)) for item in items)
        # In threads of their own: the encoder works on while records are written. A batch waits
        # for each at work, so that none of them waits for those before it to be written.
        encoded = read_ahead(
            batches(_with_copies(loaded), size, total=views, at_once=at_once),
            Encoding(encoder, self.settings.image_size),
            threads=at_once,
            ahead=2 * at_once - 1,
        )
        for batch, grids in encoded:
            # An encoder fails as a whole; what one image lacks stands in its view.
            if isinstance(grids, ItemFailure):
                raise grids
            yield from zip(batch, grids, strict=True)


class _Records:
    """Turns an image's captions into tokens and its outcome into a record or failure rows."""

    def __init__(self, vocabulary: Vocabulary, settings: FeatureSettings, sink: Sink) -> None:
        self._vocabulary, self._settings, self._sink = vocabulary, settings, sink
        self._last_written = False

    def write(self, item: Item, content: _Content | ItemFailure) -> None:
        """Account for one image."""
        self._last_written = self._write_image(item, content)

    def write_copy(self, item: Item, grid: np.ndarray | ItemFailure) -> None:
        """Write the mirror image of the image before it, where that was written."""
        if self._last_written and not isinstance(grid, ItemFailure):
            self._write_copy(item, grid)

    def _write_image(self, item: Item, content: _Content | ItemFailure) -> bool:
        captions = []
        for annotation_id, caption in item["captions"]:
            try:
                captions.append((caption, coco.words_of(annotation_id, caption)))
            except ItemFailure as failure:
                self._sink.fail_part(item, failure)
        if isinstance(content, ItemFailure):
            self._sink.fail(item, content, **{LOST_CAPTIONS + content.reason: len(captions)})
        elif not captions:
            count = len(item["captions"])
            message = f"none of its {count} captions is valid, expected at least one"
            self._sink.fail(item, ItemFailure(Reason.NO_VALID_CAPTION, message))
        else:
            cut = sum(len(words) > self._settings.max_words for _, words in captions)
            payload = self._record(item, item["key"], content, captions)
            self._sink.write(payload, **{CAPTIONS: len(captions), CUT_CAPTIONS: cut})
            return True
        return False

    def _write_copy(self, item: Item, grid: np.ndarray) -> None:
        captions = []
        for annotation_id, caption in item["captions"]:
            # What is wrong with a caption was said with the image.
            with suppress(ItemFailure):
                words = coco.words_of(annotation_id, caption)
                if not any(word.startswith(_SIDES) for word in words):
                    captions.append((caption, words))
        if captions:
            payload = self._record(item, item["key"] + records.FLIP_MARK, grid, captions)
            self._sink.write_copy(payload, **{FLIPS: 1, FLIP_CAPTIONS: len(captions)})

    def _record(
        self, item: Item, key: str, content: _Content, captions: Sequence[tuple[str, list[str]]]
    ) -> bytes:
        encode, most = self._vocabulary.encode_words, self._settings.max_words
        record = records.Record(
            item["image_id"],
            key,
            None if isinstance(content, bytes) else content,
            tuple(caption for caption, _ in captions),
            tuple(tuple(encode(words[:most])) for _, words in captions),
            content if isinstance(content, bytes) else None,
        )
        return records.frame(records.serialise(record, self._settings.compression))


def _load(item: Item, prepare: _Prepare) -> np.ndarray:
    """Read, validate, decode and resize one image."""
    return _read_and_prepare(item, prepare)[1]


def _canonical(item: Item, prepare: _Prepare) -> bytes:
    """Read and validate one image; decoded, too, so that training meets none that cannot be."""
    return _read_and_prepare(item, prepare)[0]


def _read_and_prepare(item: Item, prepare: _Prepare) -> tuple[bytes, np.ndarray]:
    data = read_item(item)
    # A JPEG's pixels are read once, by TensorFlow: it refuses what Pillow does, and a few more
    # (a test compares).
    canonical = canonicalise(data, read_pixels=False)
    try:
        return canonical.data, prepare(canonical.data)
    except tf.errors.InvalidArgumentError as error:
        canonicalise(data)
        raise ItemFailure(
            Reason.DECODE, f"Pillow reads it, TensorFlow does not: {_cause(error)}"
        ) from error


def _cause(error: tf.errors.OpError) -> str:
    """The line that says it, without the traceback of the graph around it."""
    lines = str(error.message).splitlines()
    return next(line for line in reversed(lines) if line and not line[0].isspace())


def _with_copies(loaded: Iterable[tuple[Item, np.ndarray | ItemFailure]]) -> Iterator[View]:
    """Each image and, behind it, its mirror image where its item asks for one."""
    for item, picture in loaded:
        yield View(item, picture, flipped=False)
        if item.get(FLIP) and not isinstance(picture, ItemFailure):
            # Left to right inside its extent; the padding stays on the right.
            yield View(item, picture[:, ::-1], flipped=True)
