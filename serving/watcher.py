"""Looks for new versions in a thread of its own."""

import threading
from collections.abc import Callable

from serving.versions import Versions

POLL_S = 1.0


class Watcher:
    """Polls versions every POLL_S seconds, whatever a poll runs into."""

    def __init__(
        self, versions: Versions, after: Callable[[], None], log: Callable[[str], None]
    ) -> None:
        """Starts nothing yet.

        Args:
          versions: what is polled.
          after: called after each poll.
          log: takes a line about a poll that failed.
        """
        self._versions = versions
        self._after = after
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)

    def start(self) -> None:
        """Polls from now on."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Lets no poll begin; one under way goes on."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._versions.poll()
            # Without this thread no version would ever be taken up again.
            except Exception as error:
                self._log(f"versions cannot be looked at ({type(error).__name__}: {error})")
            self._after()
