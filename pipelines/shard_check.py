"""Looks at one shard of records byte by byte: is it what its manifest says, and sound in itself?

Streams: one record is in memory at a time.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from model.record_check import DamagedRecord, check_values, deserialise, read_frames
from model.records import GRIDS, Record, ShardInfo
from pipelines import storage
from pipelines.wording import short

_DRAIN_BYTES = 2**20
# Digests, so that the keys of millions of images fit in memory; 128 bits never meet by chance.
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Rules:
    """What every record of a directory must keep to.

    Attributes:
      grid_shape: (P, F).
      vocabulary_size: V.
      max_words: words beyond which captions are cut.
      compression: how records keep their grids.
      content: what records hold of their images.
    """

    grid_shape: tuple[int, int]
    vocabulary_size: int
    max_words: int
    compression: str
    content: str


@dataclass(frozen=True)
class ShardReport:
    """What was found in a shard's file.

    Attributes:
      faults: got and expected, in words; none where it is sound.
      keys: `DIGEST_BYTES` for the key of each record, in order.
      identities: the same for its key and image_id.
    """

    faults: tuple[str, ...]
    keys: bytes = b""
    identities: bytes = b""


def check_shard(
    path: str, info: ShardInfo, rules: Rules, advance: Callable[[], None]
) -> ShardReport:
    """Read a shard and compare it with what is said of it.

    Args:
      path: of the file.
      info: what is said of it.
      rules: of all records.
      advance: called after each record.
    """
    size = storage.size(path)
    if size is None:
        return ShardReport((f"no such file, expected one of {info.bytes} bytes",))
    faults = [] if size == info.bytes else [f"{size} bytes, expected {info.bytes}"]
    tally = _Tally()
    try:
        with storage.open_read(path) as file:
            stream = _HashedStream(file)
            try:
                for record in _records(stream, size, rules):
                    tally.add(record)
                    advance()
                faults += _miscounts(tally, info)
            except DamagedRecord as damage:
                faults.append(str(damage))
            digest = stream.finish()
    except OSError as error:
        return ShardReport((f"cannot be read ({error})",))
    if digest != info.sha256:
        faults.append(f"SHA-256 {short(digest)}, expected {short(info.sha256)}")
    return ShardReport(tuple(faults), bytes(tally.keys), bytes(tally.identities))


def read_records(
    path: str, grid_shape: tuple[int, int], compression: str, content: str = GRIDS
) -> Iterator[Record]:
    """The records of a shard, one in memory at a time.

    Raises:
      DamagedRecord: one that cannot be read.
      OSError: the file cannot be read.
    """
    size = storage.size(path)
    if size is None:
        raise FileNotFoundError("no such file")
    with storage.open_read(path) as file:
        for payload in read_frames(file, size):
            yield deserialise(payload, grid_shape, compression, content)


class _Tally:
    """Counts records and captions, and notes who they are."""

    def __init__(self) -> None:
        self.records = self.captions = 0
        self.keys, self.identities = bytearray(), bytearray()

    def add(self, record: Record) -> None:
        self.records += 1
        self.captions += len(record.captions)
        key = record.key.encode()
        self.keys += _digest(key)
        self.identities += _digest(b"%d %s" % (record.image_id, key))


class _HashedStream:
    """Hashes what is read through it."""

    def __init__(self, file: Any) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = bytes(self._file.read(size))
        self._sha256.update(data)
        return data

    def finish(self) -> str:
        """Read to the end; the SHA-256 (hex) of the whole file."""
        while self.read(_DRAIN_BYTES):
            pass
        return self._sha256.hexdigest()


def _records(stream: _HashedStream, size: int, rules: Rules) -> Iterator[Record]:
    for number, payload in enumerate(read_frames(stream, size), 1):
        try:
            record = deserialise(payload, rules.grid_shape, rules.compression, rules.content)
        except DamagedRecord as damage:
            raise DamagedRecord(f"record {number}: {damage}") from damage
        try:
            check_values(record, rules.vocabulary_size, rules.max_words)
        except DamagedRecord as damage:
            raise DamagedRecord(f"record {number} ({record.key}): {damage}") from damage
        yield record


def _miscounts(tally: _Tally, info: ShardInfo) -> Iterator[str]:
    for unit in ("records", "captions"):
        found, expected = getattr(tally, unit), getattr(info, unit)
        if found != expected:
            yield f"{found} {unit}, expected {expected}"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
