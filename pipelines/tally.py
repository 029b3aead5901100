"""What this process has accounted for in shards that it has begun, for the launcher's progress."""

from dataclasses import dataclass


@dataclass
class Tally:
    """Items of one shard so far; written by the thread that makes it, read by another.

    Attributes:
      done: with a row or a failure.
      failed: of these, failed.
    """

    done: int = 0
    failed: int = 0


_WATCHED: dict[str, dict[str, Tally]] = {}


def watch(output: str) -> dict[str, Tally]:
    """From now on, the tallies by shard of what this process makes in OUTPUT."""
    return _WATCHED.setdefault(output, {})


def unwatch(output: str) -> None:
    """Nobody reads them any more."""
    _WATCHED.pop(output, None)


def begin(output: str, shard: str) -> Tally:
    """A new tally for a shard, which is known to whoever watches in this process."""
    tally = Tally()
    if output in _WATCHED:
        _WATCHED[output][shard] = tally
    return tally
