"""The order in which a shard's images are read: no host's URLs in a row."""

import hashlib
from collections.abc import Sequence

from pipelines.jobs import Item
from pipelines.listing import scheme


def is_url(source: str) -> bool:
    """Whether an item's source is fetched, not opened."""
    return scheme(source) in ("http", "https")


def spread_hosts(items: Sequence[Item]) -> Sequence[Item]:
    """The items of a shard, by the hash of their keys where one has a URL.

    Sorted by URL, a hundred images of one host would stand in a row and wait for their turns
    there while other hosts are idle. The order of two items does not depend on the others.
    """
    if not any(is_url(str(item["source"])) for item in items):
        return items
    return sorted(items, key=lambda item: hashlib.sha256(str(item["key"]).encode()).digest())
