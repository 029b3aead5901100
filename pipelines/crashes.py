"""An image that ends the process that decodes it costs its shard a second attempt, not the job.

Where an earlier attempt at a shard ended with its process (pipelines/begun), every image of the
shard is decoded in another process.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeAlias

from model.errors import ItemFailure, Reason
from model.image_bytes import Canonical
from pipelines.decoding_process import DecodingProcess

Decode: TypeAlias = Callable[[bytes], Canonical]


class CarefulDecoder:
    """Decodes in another process, so that what ends it is one image's failure.

    Safe to call from many threads, which wait for one another: whose image it was is then known.

    Args:
      decode: as `model.image_bytes.canonicalise`; pickled by reference.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._process: DecodingProcess | None = None
        self._one = threading.Lock()

    def __enter__(self) -> Self:
        """The decoder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the process, when nobody waits for it any more."""
        with self._one:
            self._end()

    def __call__(self, data: bytes) -> Canonical:
        """As the decoder; raises ItemFailure DECODE where it crashed."""
        with self._one:
            # Whoever ends it twice is to blame; once may be for lack of memory.
            answer = self._ask(data) or self._ask(data)
        if answer is None:
            raise ItemFailure(
                Reason.DECODE, "decoding it ended the process, expected a whole image"
            )
        if isinstance(answer, Canonical):
            return answer
        raise answer

    def _ask(self, data: bytes) -> Canonical | Exception | None:
        """What the decoder returned or raised; None where that ended its process."""
        if self._process is None:
            self._process = DecodingProcess(self._decode)
        try:
            answer: Canonical | Exception = self._process.ask(data)
            return answer
        except (EOFError, OSError):
            self._end()
            return None

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
