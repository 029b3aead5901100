"""Keys are unique: what comes again is numbered, except an id, which must come once.

Names that numbering can make equal have the same `root_of`. So the items of a root can be
numbered apart from all others, and a shard that holds all of a root, alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from model.errors import InvalidInput
from pipelines.listing import Found


def root_of(key: str) -> str:
    """The part of a key that numbering leaves as it is: `a` of `a`, `a#2` and `a#2#2`."""
    head = key.rstrip("#0123456789")
    return head + key[len(head) :].partition("#")[0]


def unique(found: Iterable[Found]) -> Iterator[dict[str, Any]]:
    """The items with unique keys: `a`, and where it comes again `a#2`, `a#3` …

    Args:
      found: in the order of the input; all of a root (of an id: of a key), or none.

    Raises:
      InvalidInput: an id comes twice.
    """
    used: set[str] = set()
    times: Counter[str] = Counter()
    for item, once in found:
        name = key = item["key"]
        if once is not None and key in used:
            raise InvalidInput(
                f"{once} {key!r} comes twice; expected every id once, or leave --id_column out"
            )
        while key in used:
            times[name] += 1
            key = f"{name}#{times[name] + 1}"
        used.add(key)
        yield item if key == name else {**item, "key": key}
