"""Runs stages as processes of their own, as a user would, each with a log and a live line."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from demo.web import ADDRESS
from model.errors import CheckFailed

_POLL_S = 0.2
_READY_S = 180.0
# A server lets the calls under way finish, for up to 30 s.
_STOP_S = 45.0
_TAIL_LINES = 15


class Stages:
    """Runs commands one after another.

    Attributes:
      seconds: what each finished stage took, by name, in order.

    Args:
      logs: directory of NAME.log.
      stream: where the live lines go; stdout by default.
    """

    def __init__(self, logs: Path, stream: TextIO | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._logs = logs
        self._stream = sys.stdout if stream is None else stream
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run a stage to its end.

        Raises:
          CheckFailed: it ended with another code than 0; names the stage, ends with its log.
        """
        started = time.monotonic()
        with self._log(name).open("wb") as log, _child(command, log) as process:
            while (code := _wait(process, _POLL_S)) is None:
                self._live(name, started)
        self._finish(name, started, code)

    @contextmanager
    def background(
        self, name: str, command: Sequence[str], ready: re.Pattern[str]
    ) -> Iterator[re.Match[str]]:
        """Run a server while the block runs; whatever happens there, it is stopped.

        Args:
          name: of the stage.
          command: of the server.
          ready: what a line of its log matches once it answers.

        Yields:
          The match.

        Raises:
          CheckFailed: it ended or said nothing before it was ready, or stopping it failed.
        """
        started = time.monotonic()
        with self._log(name).open("wb") as log, _child(command, log) as process:
            while (match := ready.search(self._read_log(name))) is None:
                code = _wait(process, _POLL_S)
                if code is not None or time.monotonic() - started > _READY_S:
                    raise self._failure(name, "before it was ready", code)
                self._live(name, started)
            self._finish(name, started, 0)
            yield match
            process.send_signal(signal.SIGTERM)
            if (code := _wait(process, _STOP_S)) != 0:
                raise self._failure(name, "when it was told to stop", code)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _read_log(self, name: str) -> str:
        return self._log(name).read_text(encoding="utf-8", errors="replace")

    def _live(self, name: str, started: float) -> None:
        if not self._stream.isatty():
            return
        said = re.split(r"[\r\n]+", self._read_log(name).strip())[-1]
        line = f"{name:16} {time.monotonic() - started:7.1f} s  {said}"
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[2K{line[:width]}")
        self._stream.flush()

    def _finish(self, name: str, started: float, code: int) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[2K")
        if code:
            raise self._failure(name, "", code)
        self.seconds[name] = time.monotonic() - started
        print(f"{name:16} {self.seconds[name]:7.1f} s", file=self._stream, flush=True)

    def _failure(self, name: str, when: str, code: int | None) -> CheckFailed:
        what = "did not answer" if code is None else f"ended with exit code {code}"
        tail = "\n".join(self._read_log(name).splitlines()[-_TAIL_LINES:])
        described = " ".join(filter(None, [what, when]))
        return CheckFailed(f"stage {name} {described}; {self._log(name)} ends with:\n{tail}")


@contextmanager
def _child(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=_environment()
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            if _wait(process, _STOP_S) is None:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """The exit code, or None while it still runs."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _environment() -> dict[str, str]:
    # The demo's own servers are on this machine, whatever proxy leads out of it.
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    no_proxy = f"{direct},{ADDRESS}" if direct else ADDRESS
    # Unbuffered, so that the log can be followed.
    return os.environ | {"PYTHONUNBUFFERED": "1", "no_proxy": no_proxy}
