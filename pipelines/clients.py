"""Clients of one model for workers of any kind: made where they are used, never pickled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from apache_beam.utils.shared import Shared

from serving.client import Client, Target, connect_to

Connect: TypeAlias = Callable[[Target], Client]


class Clients:
    """Hands out clients in whatever process it was pickled to.

    A model is loaded once a process. A server is asked anew each time, because what it serves
    may have changed.
    """

    def __init__(self, target: Target, connect: Connect = connect_to) -> None:
        """Keeps the settings; nothing is loaded."""
        self._target, self._connect = target, connect
        self._shared = Shared()

    def load(self) -> Client | None:
        """The model in this process, which stays loaded while somebody holds it."""
        if self._target.server is not None:
            return None
        client: Client = self._shared.acquire(partial(self._connect, self._target))
        return client

    @contextmanager
    def open(self) -> Iterator[Client]:
        """A client that has answered; raises as `serving.client.connect_to`."""
        loaded = self.load()
        if loaded is not None:
            yield loaded
        else:
            with self._connect(self._target) as client:
                yield client

    def pinned(self, version: int) -> "Clients":
        """The same, for that version alone even when a newer one is published meanwhile.

        It shares what this one has loaded in this process.
        """
        model = self._target.model
        if model is None or Path(model).resolve().name == str(version):
            return self
        clients = Clients(replace(self._target, model=f"{model}/{version}"), self._connect)
        clients._shared = self._shared
        return clients
