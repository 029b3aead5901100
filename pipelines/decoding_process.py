"""A process that decodes images for another one: `python -m pipelines.decoding_process FD`.

Receives the decoder and says when it has it, then bytes again and again; answers what the decoder
returned or the ItemFailure that it raised. Imports next to nothing, so that it starts at once.
"""

import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from model.errors import InvalidInput


class DecodingProcess:
    """The process, seen from outside.

    Args:
      decode: pickled by reference.

    Raises:
      InvalidInput: it does not start.
    """

    def __init__(self, decode: Any) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        try:
            self._pipe.send(decode)
            self._pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise InvalidInput(
                "the process that decodes images of a shard that crashed does not start; see what "
                "it said above and that there is memory, then repeat the command"
            ) from error

    def ask(self, data: bytes) -> Any:
        """What the decoder returned, or the exception that it raised.

        Raises:
          EOFError, OSError: the process has ended.
        """
        self._pipe.send(data)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process, if it has not ended."""
        self._pipe.close()
        self._process.wait()


def _answer(pipe: Connection) -> None:
    decode = pipe.recv()
    pipe.send(None)
    while True:
        try:
            data = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(decode(data))
        except Exception as error:
            pipe.send(error)


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as ours:
        _answer(ours)
