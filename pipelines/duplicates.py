"""Finds what comes twice among the records of many shards, by their digests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pipelines.shard_check import DIGEST_BYTES

_HALVES = np.dtype([("high", "<u8"), ("low", "<u8")])


@dataclass(frozen=True)
class Place:
    """A record: the position of its shard in the list that was searched, and its own, from 0."""

    shard: int
    record: int


def find_twice(digests: Sequence[bytes]) -> Iterator[tuple[Place, Place]]:
    """Every record whose digest an earlier one has: (the one before it, itself).

    Args:
      digests: those of each shard's records, `DIGEST_BYTES` each.
    """
    table = np.frombuffer(b"".join(digests), _HALVES)
    starts = [0, *accumulate(len(each) // DIGEST_BYTES for each in digests)]
    # Stable, so that of equal ones the earlier comes first.
    order = np.lexsort((table["low"], table["high"]))
    same = np.flatnonzero(table[order][1:] == table[order][:-1])
    for index in sorted(same, key=lambda index: int(order[index + 1])):
        yield _place(starts, int(order[index])), _place(starts, int(order[index + 1]))


def _place(starts: Sequence[int], position: int) -> Place:
    shard = int(np.searchsorted(starts, position, side="right")) - 1
    return Place(shard, position - starts[shard])
