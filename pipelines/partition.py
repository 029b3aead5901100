"""Spreads a stream of items over deterministic shards, in memory that is bounded.

    with Partition(sources) as partition:
        count = -(-partition.items // shard_size)
        for items in partition.shards(count):
            …

The shards are equal parts of the range of hashes, and an item's hash is that of its key's root
(pipelines/keys): a shard holds all that a name may have, so that it is numbered alone. Ids, which
are never numbered, go by the whole key. So what one name stands for is never divided: a manifest
that names one image a million times, or names such as `a#1`, `a#2` … without an id column, are one
shard, which is held whole. The first pass appends every item to one of 256 files by the first byte
of the hash, and counts. The second reads one file after the other; never more than one of them, or
one shard, is in memory.
"""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from model.errors import InvalidInput
from pipelines.keys import root_of, unique
from pipelines.listing import Found

_FILES = 256
_HASH_BITS = 64
_HASH_DIGITS = _HASH_BITS // 4
# What is written at once; open files would be too many for some systems.
_PIECE_BYTES = 16 * 2**20


class Partition:
    """Items on this machine's disk, in shards; a context manager that removes them at its end."""

    def __init__(self, found: Iterable[Found], directory: str | None = None) -> None:
        """Reads the stream to its end.

        Args:
          found: items, in the order that numbers those whose keys come again.
          directory: where a temporary directory is made; that of TMPDIR when omitted.

        Raises:
          InvalidInput: as reading the stream does, or the directory cannot be written.
        """
        self.items = 0
        with spool_errors():
            self._directory = tempfile.TemporaryDirectory(prefix="captionbeam-", dir=directory)
        try:
            self._spool(found)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """The partition itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the files."""
        self.close()

    def close(self) -> None:
        """Removes the files."""
        self._directory.cleanup()

    def shards(self, count: int) -> Iterator[list[dict[str, Any]]]:
        """The items of each shard, with unique keys and sorted by them; may be asked for again.

        Args:
          count: number of shards, 1 or more.

        Raises:
          InvalidInput: an id comes twice.
        """
        gathered: dict[int, list[bytes]] = defaultdict(list)
        begun = 0
        for number in range(_FILES):
            for line in self._lines(number):
                gathered[int(line[:_HASH_DIGITS], 16) * count >> _HASH_BITS].append(line)
            # What hashes of the files to come lead to.
            ended = (number + 1) * count // _FILES
            for shard in range(begun, ended):
                found = (
                    Found(*json.loads(line[_HASH_DIGITS:].decode()))
                    for line in gathered.pop(shard, ())
                )
                yield sorted(unique(found), key=lambda item: str(item["key"]))
            begun = ended

    def sources(self) -> Iterator[str]:
        """The sources of all items, in no order that means anything."""
        for number in range(_FILES):
            for line in self._lines(number):
                item, _ = json.loads(line[_HASH_DIGITS:].decode())
                yield item["source"]

    def _spool(self, found: Iterable[Found]) -> None:
        pieces: dict[int, list[bytes]] = defaultdict(list)
        waiting = 0
        for self.items, (item, once) in enumerate(found, 1):
            root = root_of(item["key"]) if once is None else item["key"]
            digest = hashlib.sha256(root.encode()).digest()
            line = f"{digest.hex()[:_HASH_DIGITS]}{json.dumps([item, once])}\n".encode()
            pieces[digest[0]].append(line)
            waiting += len(line)
            if waiting >= _PIECE_BYTES:
                self._append(pieces)
                waiting = 0
        self._append(pieces)

    def _append(self, pieces: dict[int, list[bytes]]) -> None:
        with spool_errors():
            for number, lines in pieces.items():
                with self._path(number).open("ab") as file:
                    file.writelines(lines)
        pieces.clear()

    def _lines(self, number: int) -> list[bytes]:
        with spool_errors():
            path = self._path(number)
            return path.read_bytes().splitlines() if path.exists() else []

    def _path(self, number: int) -> Path:
        return Path(self._directory.name, f"{number:02x}")


@contextmanager
def spool_errors() -> Iterator[None]:
    """Tell of a directory of TMPDIR that is full, or cannot be written."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(
            f"{tempfile.gettempdir()}: cannot keep the list of the inputs ({error}); set TMPDIR to "
            "a directory that can be written and has free space"
        ) from error
