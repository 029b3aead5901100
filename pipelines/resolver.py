"""Names → addresses that may be reached, looked up and checked once a minute."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

from model.errors import ItemFailure, Reason
from pipelines.addresses import AddressRules
from pipelines.http_answers import TransientFailure
from pipelines.lookups import Lookups

Place: TypeAlias = tuple[socket.AddressFamily, Any]
"""Family and socket address."""
_Found: TypeAlias = list[Place] | ItemFailure

# The lifetime that most names of web servers have by their own word; failures are kept as long.
_LIFETIME_S = 60.0
_MAX_NAMES = 10_000
# What says of a name that it has no address; all else says something about who was asked.
_NO_ADDRESS = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})


class Resolver:
    """Looks names up; safe to use from many threads."""

    def __init__(
        self, rules: AddressRules | None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        rules: which addresses may be reached; all when None.
        now_s: monotonic seconds.
        """
        self._rules = rules
        self._found: Lookups[_Found] = Lookups(_MAX_NAMES, now_s)

    def known_failure(self, host: str, port: int | None) -> ItemFailure | None:
        """What `find` would raise without waiting for anybody; None where that is not known."""
        found = self._found.known((host, port))
        return ItemFailure(found.reason, found.message) if isinstance(found, ItemFailure) else None

    def find(self, host: str, port: int | None, timeout_s: float) -> list[Place]:
        """The addresses of a host that may be reached, in the resolver's order.

        Raises:
          ItemFailure: DNS, TIMEOUT or REFUSED_ADDRESS.
          TransientFailure: DNS, where the name was not found out about.
        """
        key = (host, port)
        future, mine = self._found.claim(key, _LIFETIME_S)
        if mine:
            # The system's resolver knows no deadline; a thread of its own can be left behind.
            look_up = threading.Thread(
                target=self._look_up, args=(host, port, future), name="resolve", daemon=True
            )
            look_up.start()
        try:
            found = future.result(max(timeout_s, 0))
        except TimeoutError:
            raise ItemFailure(Reason.TIMEOUT, f"{host}: the name is not resolved in time") from None
        if isinstance(found, ItemFailure):
            # Another for each caller; raising one in many threads would mix their tracebacks.
            raise type(found)(found.reason, found.message)
        return found

    def _look_up(self, host: str, port: int | None, future: "Future[_Found]") -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            stays = isinstance(error, ValueError) or error.errno in _NO_ADDRESS
            self._found.keep((host, port), future, _LIFETIME_S if stays else 0)
            failure = ItemFailure if stays else TransientFailure
            future.set_result(failure(Reason.DNS, f"{host}: {error}"))
        else:
            found: list[Place] = [(family, where) for family, _, _, _, where in answers]
            future.set_result(self._checked(host, found))

    def _checked(self, host: str, found: list[Place]) -> _Found:
        if self._rules is None:
            return found
        refused = {where[0]: self._rules.refusal(str(where[0])) for _, where in found}
        checked = [(family, where) for family, where in found if not refused[where[0]]]
        if not checked:
            reasons = ", ".join(f"{address} ({kind})" for address, kind in refused.items())
            return ItemFailure(
                Reason.REFUSED_ADDRESS,
                f"{host} is {reasons}; expected a public address, or its network in "
                "--allow_private",
            )
        return checked
