"""Notes which shards of an amendable job are being made, so that a cut attempt is not overlooked.

OUTPUT/_work/begun/NAME.json is there from before a shard's first file until its result is. As long
as it is, an older result of the shard does not count: small files beside its rows may be newer.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipelines import storage
from pipelines.jobs import Job

_ENDED = "ended"


@dataclass(frozen=True)
class Earlier:
    """What is known of an earlier attempt at a shard.

    Attributes:
      cut: it did not come to its end.
      crashed: nor did its process, killed or by one of the images.
    """

    cut: bool = False
    crashed: bool = False


@contextmanager
def begun(job: Job, name: str) -> Iterator[Earlier]:
    """Note that a shard is being made, until the block ends well."""
    if not job.amendable:
        yield Earlier()
        return
    path = job.begun_path(name)
    try:
        note = storage.read_json(path)
    # Cut short.
    except ValueError:
        note = {}
    storage.write_json(path, {})
    try:
        yield Earlier(note is not None, note is not None and _ENDED not in note)
    except BaseException:
        # The process lives on; on a full disk the note stays as it is.
        with suppress(Exception):
            storage.write_json(path, {_ENDED: True})
        raise
    storage.delete(path)
