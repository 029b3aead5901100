"""Canonical image bytes in, captions out, through a server or a model in this process.

    with connect(model=None, server="localhost:8500") as client:
        for result in client.caption([image_bytes]):
            print(result.caption)

An answer has exactly one result for each image, in the order sent, or an error is raised.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import numpy as np

from model.errors import InvalidInput, ItemFailure, Reason
from serving import answers, contract, metadata, retry
from serving.answers import CaptionResult, Explained, Hypothesis
from serving.errors import (
    NOT_FOUND,
    REFUSED,
    TRANSIENT,
    CallFailed,
    InvalidRequest,
    ModelMismatch,
    ServerError,
    ServerUnavailable,
)
from serving.metadata import ModelMetadata
from serving.retry import Clock, Retries
from serving.transport import GrpcTransport, SavedModelTransport, Transport

__all__ = ["CaptionResult", "Client", "Explained", "Hypothesis", "connect"]

# Long enough for a server on another continent, short enough for a person who mistyped.
CONNECT_TIMEOUT_S = 5.0
DEFAULT_TIMEOUT_S = 60.0

_Answer = TypeVar("_Answer")
_Row: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RequestLimits:
    """How much goes into one request; a larger image goes alone.

    Attributes:
      images: images at most, at least 1.
      image_bytes: their bytes in all, below the server's message limit.
    """

    images: int = 32
    image_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.images < 1 or self.image_bytes < 1:
            raise InvalidInput(f"{self}: expected 1 or more of each")


class Client:
    """Captions images through a transport; one client serves many threads.

    The first call asks the model for its metadata and refuses one that is not ours.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: Retries | None = None,
        limits: RequestLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Keeps the settings; nothing is sent.

        Args:
          transport: makes single attempts; closed with the client.
          timeout_s: seconds for one request with all its attempts and pauses.
          retries: how often to ask and how far apart.
          limits: where a long list of images is split into requests.
          clock: time and chance.
        """
        if not timeout_s > 0:
            raise InvalidInput(f"timeout of {timeout_s:g} s: expected more than 0")
        self._transport = transport
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._limits = limits or RequestLimits()
        self._clock = clock or Clock()
        self._metadata: ModelMetadata | None = None
        self._checking = threading.Lock()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the transport."""
        self.close()

    def close(self) -> None:
        """Closes the transport."""
        self._transport.close()

    @property
    def model(self) -> tuple[str, int]:
        """Name and version of the model that answers; raises as `check`."""
        found = self.check()
        return found.name, found.version

    def check(self, timeout_s: float | None = None) -> ModelMetadata:
        """Asks the model what it is, once; later calls repeat the answer.

        Raises:
          ServerUnavailable: nobody answers.
          ModelMismatch: the server has no such model, or it is not ours.
        """
        with self._checking:
            if self._metadata is None:
                found = self._call(self._transport.metadata, timeout_s or self._timeout_s)
                metadata.check(found)
                self._metadata = found
            return self._metadata

    def caption(self, images: Sequence[bytes]) -> list[CaptionResult]:
        """Captions canonical image bytes.

        Raises:
          InvalidRequest: the model refuses at least one of the images, the first of which is named.
          ServerUnavailable: no answer within the deadline.
          ServerError: the server failed, or its answer does not fit the request.
          ModelMismatch: the model is not ours.
        """
        return _all(self._each(contract.SERVING_DEFAULT, answers.caption_result, images))

    def explain(self, images: Sequence[bytes]) -> list[Explained]:
        """Captions with the attention of every word; raises as `caption`."""
        return _all(self._each(contract.EXPLAIN, answers.explained, images))

    def nbest(self, images: Sequence[bytes]) -> list[list[Hypothesis]]:
        """All K captions of every image, best first; raises as `caption`."""
        return _all(self._each(contract.NBEST, answers.hypotheses, images))

    def caption_each(self, images: Sequence[bytes]) -> list[CaptionResult | ItemFailure]:
        """As `caption`; an image that the model refuses has its failure in its place."""
        return list(self._each(contract.SERVING_DEFAULT, answers.caption_result, images))

    def explain_each(self, images: Sequence[bytes]) -> list[Explained | ItemFailure]:
        """As `explain`; an image that the model refuses has its failure in its place."""
        return list(self._each(contract.EXPLAIN, answers.explained, images))

    def _each(
        self, signature: str, read: Callable[[_Row], _Answer], images: Sequence[bytes]
    ) -> Iterator[_Answer | ItemFailure]:
        self.check()
        for batch in _split(images, self._limits):
            for row in self._rows(signature, batch, self._clock.now_s() + self._timeout_s):
                yield row if isinstance(row, ItemFailure) else read(row)

    def _rows(
        self, signature: str, images: Sequence[bytes], deadline_s: float
    ) -> Iterator[_Row | ItemFailure]:
        """One request's rows; of a request that is refused as a whole, those of its halves."""
        predict = partial(self._transport.predict, signature, images)
        try:
            outputs = self._call(predict, deadline_s - self._clock.now_s())
        except InvalidRequest as error:
            if len(images) == 1:
                yield ItemFailure(Reason.MODEL_ERROR, str(error))
                return
            half = len(images) // 2
            for part in (images[:half], images[half:]):
                yield from self._rows(signature, part, deadline_s)
            return
        for row in answers.rows(signature, outputs, len(images)):
            yield answers.failure(row) or row

    def _call(self, attempt: Callable[[float], _Answer], timeout_s: float) -> _Answer:
        try:
            return retry.call(
                attempt, timeout_s=timeout_s, retries=self._retries, clock=self._clock
            )
        except CallFailed as error:
            raise _meaning(error) from error


def connect(
    *,
    model: str | None,
    server: str | None,
    model_name: str = contract.DEFAULT_MODEL_NAME,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Client:
    """A client for `--model MODELS/NAME` (in this process) or `--server HOST:PORT`.

    The model has answered and is ours when this returns.

    Args:
      model: MODELS/NAME or MODELS/NAME/VERSION, or None.
      server: HOST:PORT, or None.
      model_name: name under which the server knows the model.
      timeout_s: seconds for each later request.

    Raises:
      InvalidInput: not exactly one of the two is given, or it cannot be used.
      ServerUnavailable: nobody answers at the address within CONNECT_TIMEOUT_S.
      ModelMismatch: the model is not ours.
    """
    if (model is None) == (server is None):
        raise InvalidInput(
            f"{'neither' if model is None else 'both'} of --model and --server given; "
            "expected one: --model MODELS/NAME or --server HOST:PORT"
        )
    transport: Transport
    if server is None:
        transport = SavedModelTransport(str(model))
    elif re.fullmatch(r"\S+:\d{1,5}", server):
        transport = GrpcTransport(server, model_name)
    else:
        raise InvalidInput(
            f"--server {server}: expected HOST:PORT, such as localhost:{contract.GRPC_PORT}"
        )
    client = Client(transport, timeout_s=timeout_s)
    try:
        client.check(min(timeout_s, CONNECT_TIMEOUT_S))
    except ServerUnavailable as error:
        client.close()
        raise ServerUnavailable(
            f"no server at {server} ({error}); start one with "
            f"`captionbeam serve --model MODELS/{model_name}`, or use --model"
        ) from error
    except BaseException:
        client.close()
        raise
    return client


def _all(results: Iterable[_Answer | ItemFailure]) -> list[_Answer]:
    """The results; raises InvalidRequest for the first failure, and asks for no more."""
    found: list[_Answer] = []
    for result in results:
        if isinstance(result, ItemFailure):
            raise InvalidRequest(f"image {len(found) + 1}: {result.message}")
        found.append(result)
    return found


def _split(images: Sequence[bytes], limits: RequestLimits) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for image in images:
        full = len(batch) == limits.images or size + len(image) > limits.image_bytes
        if batch and full:
            yield batch
            batch, size = [], 0
        batch.append(image)
        size += len(image)
    if batch:
        yield batch


def _meaning(error: CallFailed) -> Exception:
    """What the caller of a client can do about a failed call."""
    if error.code in TRANSIENT:
        return ServerUnavailable(str(error))
    if error.code in REFUSED:
        return InvalidRequest(error.message)
    if error.code == NOT_FOUND:
        return ModelMismatch(
            f"{error.message}; expected the name that the server gives its model (--model_name)"
        )
    return ServerError(f"the model failed ({error})")
