"""One launch at a time on one OUTPUT, on any filesystem that lists what was written.

A launch announces itself by a file of its own, DIRECTORY/TOKEN.json, and looks at the others'
afterwards: of two launches, the one that wrote later sees the other's file. Whoever sees one
that is alive withdraws, so never two hold OUTPUT. A launch that takes over from a dead one says
so in its own file and never writes another's, so neither does a heartbeat
overwrite a lease that was taken over meanwhile.

The holder writes its file again every BEAT_EVERY_S; one that was not written for
EXPIRES_AFTER_S is dead. Ages are differences between two of the filesystem's own times of
writing, that of the file in question and that of the newcomer's, so it does no harm that the
clocks of the machines differ. The time in a message is that of the holder's clock.
"""

import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from model.errors import InvalidInput
from pipelines import storage
from pipelines.processes import Process, this_process
from pipelines.pulse import BEAT_EVERY_S, forget_pulse, pulse_of

EXPIRES_AFTER_S = 120.0
# Launches that announce themselves at the same moment all withdraw and come again at random.
_ATTEMPTS = 8
_PAUSE_S = 0.5
_SUFFIX = ".json"


@dataclass(frozen=True)
class Lease:
    """The right to write OUTPUT, as it travels to the workers and as its file says it.

    Attributes:
      output: OUTPUT, for messages.
      directory: where the files of leases lie.
      token: no other launch has it.
      process: the launcher.
      since: when it was announced, in seconds of the launcher's clock since 1970.
      local: all workers end with the launcher, which alone beats. Else the workers of a cluster
        keep the lease when the launcher is gone.
      held: it was taken; else it is only announced.
      supersedes: tokens of the dead leases that it took over.
    """

    output: str
    directory: str
    token: str
    process: Process
    since: float
    local: bool
    held: bool = False
    supersedes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The file of this lease."""
        return f"{self.directory}/{self.token}{_SUFFIX}"

    def check(self) -> float:
        """Find the lease still this launch's.

        Returns:
          When its file was written, in seconds of the filesystem's clock since 1970.

        Raises:
          InvalidInput: another launch took over, or the launcher has ended.
          OSError: the leases cannot be listed.
        """
        files = _list(self.directory)
        written = files.pop(self.path, None)
        for path in files:
            other = _read(path)
            if other is not None and self.token in other.supersedes:
                raise InvalidInput(
                    f"{self.output}: another launch ({other}) took over, because this one gave no "
                    f"sign of life for {EXPIRES_AFTER_S:.0f} s; leave OUTPUT to that one"
                )
        if written is None:
            raise InvalidInput(
                f"{self.output}: this launch holds it no longer, another one took over and has "
                "ended, or the lease was deleted; repeat the command"
            )
        if self.local and self.process.has_ended():
            raise InvalidInput(
                f"{self.output}: the launch of this worker ({self}) has ended; repeat the command"
            )
        return written

    def keep(self) -> None:
        """Look after the lease every BEAT_EVERY_S; to be called for every item.

        A look that fails is left out: the one before a shard is finished counts.

        Raises:
          InvalidInput: as `check`.
        """
        pulse = pulse_of(self.token)
        if not pulse.is_due():
            return
        try:
            if pulse.is_silent(self.check()) and not self.local:
                self.beat()
        except InvalidInput:
            pulse.look_at_once()
            raise
        # Each filesystem's client raises errors of its own.
        except Exception:
            return

    def beat(self) -> None:
        """Write the file again, which gives it a new time."""
        storage.write_json(self.path, asdict(self))

    def release(self) -> None:
        """Remove the file, and nobody else's."""
        storage.delete(self.path)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.process.pid} on {self.process.host}, since {since}"


@contextmanager
def hold(output: str, directory: str, local: bool) -> Iterator[Lease]:
    """Hold OUTPUT until the block ends.

    Args:
      output: for messages.
      directory: where the leases of OUTPUT lie.
      local: as in Lease.

    Raises:
      InvalidInput: another launch holds it.
      OSError: the directory cannot be written.
    """
    wanted = Lease(output, directory, uuid.uuid4().hex, this_process(), time.time(), local)
    lease = _take(wanted)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, ended), daemon=True, name="lease")
    beating.start()
    try:
        yield lease
    finally:
        ended.set()
        beating.join()
        forget_pulse(lease.token)
        # It expires by itself; what the block raised counts.
        with suppress(OSError):
            lease.release()


def _take(wanted: Lease) -> Lease:
    """Announce, look, then hold or withdraw."""
    alive: list[_Other] = []
    try:
        for _ in range(_ATTEMPTS):
            wanted.beat()
            others = _others(wanted)
            alive = [other for other in others if not other.is_dead]
            if not alive:
                return _take_over(wanted, others)
            wanted.release()
            if any(other.is_held for other in alive):
                break
            time.sleep(random.uniform(0, _PAUSE_S))
    except BaseException:
        # On a full disk the file may lie there although it could not be written.
        with suppress(OSError):
            wanted.release()
        raise
    holder = max(alive, key=lambda other: other.is_held)
    raise InvalidInput(
        f"{wanted.output} is held by another launch ({holder.lease or 'unknown'}), whose lease "
        f"expires in {max(EXPIRES_AFTER_S - holder.age_s, 0):.0f} s unless it is renewed; wait "
        "for that launch or stop it, then repeat the command"
    )


def _take_over(wanted: Lease, dead: Sequence["_Other"]) -> Lease:
    tokens = (other.path.rpartition("/")[2].removesuffix(_SUFFIX) for other in dead)
    lease = replace(wanted, held=True, supersedes=tuple(tokens))
    lease.beat()
    # Who slept since the look above may have been taken over itself.
    lease.check()
    for other in dead:
        storage.delete(other.path)
    return lease


@dataclass(frozen=True)
class _Other:
    """Another launch's file: what it says, None where it cannot be read, and its age."""

    path: str
    lease: Lease | None
    age_s: float

    @property
    def is_dead(self) -> bool:
        if self.age_s > EXPIRES_AFTER_S:
            return True
        # The workers of a cluster outlive their launcher, so that only silence tells.
        return self.lease is not None and self.lease.local and self.lease.process.has_ended()

    @property
    def is_held(self) -> bool:
        return self.lease is not None and self.lease.held


def _others(lease: Lease) -> list[_Other]:
    files = _list(lease.directory)
    # Not listed when another launch took it for dead just now; then that one is seen.
    now = files.pop(lease.path, max(files.values(), default=0.0))
    return [_Other(path, _read(path), now - written) for path, written in files.items()]


def _list(directory: str) -> dict[str, float]:
    """Paths of the lease files, and when they were written."""
    found = storage.list_files(f"{directory}/*{_SUFFIX}")
    return {file.path: file.last_updated_in_seconds for file in found}


def _read(path: str) -> Lease | None:
    try:
        fields: dict[str, Any] = storage.read_json(path)
        fields["process"] = Process(**fields["process"])
        fields["supersedes"] = tuple(fields["supersedes"])
        return Lease(**fields)
    # Removed since it was listed, or not ours.
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _beat(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(BEAT_EVERY_S):
        try:
            lease.check()
            lease.beat()
        except InvalidInput:
            # What is made in this process finds it at the next item, other workers when they look.
            pulse_of(lease.token).look_at_once()
            return
        # Each filesystem's client raises errors of its own; the next beat may pass.
        except Exception:
            continue
