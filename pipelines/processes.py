"""Which process wrote a file, and whether it has ended."""

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PROC = Path("/proc")
# Fields of /proc/PID/stat after the command's closing bracket (man 5 proc): state, starttime.
_STATE, _STARTTIME = 0, 19
_ENDED_STATES = ("Z", "X")


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same number.

    Attributes:
      host: name of its machine or container.
      system: boot and process namespace in which `pid` counts; empty where the system does not
        tell, which is anywhere but on Linux.
      pid: its number.
      started: when it started, in clock ticks since the boot; 0 where the system does not tell.
    """

    host: str
    system: str
    pid: int
    started: int

    def has_ended(self) -> bool:
        """Whether it certainly has; False where that cannot be seen from here."""
        here = this_process()
        if not self.system or (self.host, self.system) != (here.host, here.system):
            return False
        return start_of(self.pid) != self.started


def this_process() -> Process:
    """The process that asks; a worker forked from another is its own."""
    return _process(os.getpid())


# Asked for with every file that is written.
@lru_cache(maxsize=1)
def _process(pid: int) -> Process:
    return Process(socket.gethostname(), _system(), pid, start_of(pid) or 0)


def start_of(pid: int) -> int | None:
    """Clock ticks from the boot to the start of a running process; None when none runs."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    # It has ended, or ends while it is read, or no process can have that number.
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STATE] in _ENDED_STATES else int(fields[_STARTTIME])


def _system() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return ""
