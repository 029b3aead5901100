"""Turns at a host: so many requests at once, and so many in a second."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from model.errors import ItemFailure, Reason
from serving.retry import Clock

MAX_WAIT_S = 600.0
# Hosts that are kept in mind at least; those that nobody waits for are forgotten above it.
_MANY_HOSTS = 4_096


@dataclass
class _Host:
    """A host's turns; `next_s` is when the next may begin."""

    free: threading.Semaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    next_s: float = 0.0


class HostTurns:
    """Makes the requests to one host wait for each other, and no others."""

    def __init__(
        self, connections: int, rate: float, clock: Clock, max_wait_s: float = MAX_WAIT_S
    ) -> None:
        """Args:
        connections: requests to one host at once.
        rate: requests to one host in a second; 0 for no limit.
        clock: time.
        max_wait_s: longest wait for a turn.
        """
        self._connections, self._clock, self._max_wait_s = connections, clock, max_wait_s
        self._interval_s = 1 / rate if rate else 0.0
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Waits for a turn, which lasts as long as the block.

        Raises:
          ItemFailure: TIMEOUT; none came.
        """
        host = self._enter(name)
        try:
            ends_s = self._clock.now_s() + self._max_wait_s
            if not host.free.acquire(timeout=self._max_wait_s):
                raise self._no_turn(name)
            try:
                self._wait(name, host, ends_s)
                yield
            finally:
                host.free.release()
        finally:
            with self._lock:
                host.users -= 1

    def hold(self, name: str, pause_s: float) -> None:
        """Lets no turn at a host begin for so many seconds."""
        host = self._enter(name)
        with host.lock:
            host.next_s = max(host.next_s, self._clock.now_s() + pause_s)
        with self._lock:
            host.users -= 1

    def _wait(self, name: str, host: _Host, ends_s: float) -> None:
        while True:
            with host.lock:
                now_s = self._clock.now_s()
                if now_s >= host.next_s:
                    host.next_s = now_s + self._interval_s
                    return
                pause_s = host.next_s - now_s
            if now_s + pause_s > ends_s:
                raise self._no_turn(name)
            self._clock.sleep(pause_s)

    def _enter(self, name: str) -> _Host:
        """A host that is not forgotten until its users have left."""
        with self._lock:
            host = self._hosts.get(name)
            if host is None:
                if len(self._hosts) >= _MANY_HOSTS:
                    now_s = self._clock.now_s()
                    self._hosts = {
                        known: other
                        for known, other in self._hosts.items()
                        if other.users or other.next_s > now_s
                    }
                host = self._hosts[name] = _Host(threading.Semaphore(self._connections))
            host.users += 1
            return host

    def _no_turn(self, name: str) -> ItemFailure:
        return ItemFailure(
            Reason.TIMEOUT,
            f"no turn at {name} within {self._max_wait_s:g} s; raise --host_rate or "
            "--host_connections if the host can bear it",
        )
