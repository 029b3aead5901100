"""Reads the images of a bulk shard, from wherever they are, and cuts them into batches."""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from model.errors import ItemFailure, Reason
from pipelines.crashes import Decode
from pipelines.fetch import Fetcher
from pipelines.fetch_order import is_url
from pipelines.image_files import read_item
from pipelines.jobs import Item

# Enough to hide the latency of a disk; decoding leaves Python's lock.
_READ_THREADS = 16
# Batches that are read or waiting while one is in the model.
BATCHES_AHEAD = 2
# Photographs are far below it; 32 of the largest files that are read are a gigabyte.
BATCH_BYTES = 64 * 2**20
# Of images that are read and wait.
AHEAD_BYTES = 2 * BATCH_BYTES
# Reading waits for disks and hosts, decoding for cores, and holds up to 0.3 GB of pixels.
_DECODES = threading.BoundedSemaphore(2 * (os.cpu_count() or 1))


@dataclass(frozen=True)
class ReadImage:
    """An item that was read.

    Attributes:
      sha256: of its original bytes.
      width: upright, in pixels.
      height: likewise.
      data: canonical bytes; None where nobody is asked about them (again).
      original: bytes as they were read; None where nobody keeps them.
    """

    sha256: str
    width: int
    height: int
    data: bytes | None
    original: bytes | None = None


Read: TypeAlias = ReadImage | ItemFailure


def read_threads(items: Sequence[Item], batch_size: int) -> int:
    """Threads that read the images of a shard."""
    # Whoever waits for a host has a thread of its own, and holds up nobody else.
    fetched = any(is_url(str(item["source"])) for item in items)
    return batch_size * BATCHES_AHEAD if fetched else _READ_THREADS


def read_original(fetcher: Fetcher, item: Item) -> bytes:
    """The bytes of an item's image, wherever it lies; raises ItemFailure."""
    source = str(item["source"])
    if not source:
        raise ItemFailure(Reason.INVALID_URL, "an empty cell, expected a URL or a path")
    return fetcher.fetch(source) if is_url(source) else read_item(item)


def known_failure(fetcher: Fetcher, item: Item) -> ItemFailure | None:
    source = str(item["source"])
    return fetcher.known_failure(source) if is_url(source) else None


def load_image(fetcher: Fetcher, decode: Decode, item: Item, *, keep: bool = False) -> ReadImage:
    """Read and canonicalise one item; raises ItemFailure."""
    data = read_original(fetcher, item)
    with _DECODES:
        image = decode(data)
    sha256, original = hashlib.sha256(data).hexdigest(), data if keep else None
    return ReadImage(sha256, image.width, image.height, image.data, original)


def weight(read: Read) -> int:
    """Bytes that an image holds in memory, without its fields."""
    if isinstance(read, ItemFailure):
        return 0
    kept = {id(data): len(data) for data in (read.data, read.original) if data is not None}
    return sum(kept.values())


def batches(images: Iterable[tuple[Item, Read]], size: int) -> Iterator[list[tuple[Item, Read]]]:
    """Lists with so many images to send each, fewer where they are large; the others go along.

    Where a batch ends, the images' sizes and places in the shard alone decide, and with --dedupe
    what the process remembers.
    """
    batch: list[tuple[Item, Read]] = []
    sent = held = 0
    for item, read in images:
        batch.append((item, read))
        sent += isinstance(read, ReadImage) and read.data is not None
        held += weight(read)
        if sent == size or held >= BATCH_BYTES:
            yield batch
            batch, sent, held = [], 0, 0
    if batch:
        yield batch
