"""Canonical image bytes in, captions out, through a server or a model in this process.

    with connect(model=None, server="localhost:8500") as client:
        for result in client.caption([image_bytes]):
            print(result.caption)

An answer has exactly one result for each image, in the order sent, or an error is raised.
"""

import base64
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from types import TracebackType
from typing import Self, TypeVar

from model.errors import InvalidInput, ItemFailure, Reason
from serving import answers, contract, metadata, retry
from serving.answers import CaptionResult, Explained, Hypothesis, Row
from serving.batches import RequestLimits, split
from serving.errors import (
    AnswerTooLarge,
    CallFailed,
    InvalidRequest,
    ServerUnavailable,
    meaning,
)
from serving.metadata import ModelMetadata
from serving.retry import IN_PROCESS, STARTING, Clock, Retries
from serving.target import CONNECT_TIMEOUT_S, Target
from serving.transport import GrpcTransport, SavedModelTransport, Transport

__all__ = [
    "CaptionResult",
    "Client",
    "Explained",
    "Hypothesis",
    "ModelMetadata",
    "Target",
    "connect",
    "connect_to",
]

# The first attempt gets half of it: a minute, longer than 32 images take on two cores.
DEFAULT_TIMEOUT_S = 120.0

# A black picture of the least size, as a PNG: what fills a request up.
FILLER = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAADElEQVR42mNgGB4AAADIAAGTvaWOAAAAAElFTkSuQmCC"
)

_Answer = TypeVar("_Answer")


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
        """Name and version of the model that was checked; raises as `check`.

        A server may change its model later, and replicas may differ: what answered is the
        `model_version` of each result.
        """
        found = self.check()
        return found.name, found.version

    def check(self, wait_s: float | None = None) -> ModelMetadata:
        """Asks the model what it is, once; later calls repeat the answer.

        Args:
          wait_s: seconds to keep asking while nobody listens or the model is loading; by
            default it is asked like any other request.

        Raises:
          ServerUnavailable: nobody answers, or (NotReady) the model is still loading.
          ModelMismatch: the server has no such model, or it is not ours.
        """
        with self._checking:
            if self._metadata is None:
                found = (
                    self._call(self._transport.metadata, self._timeout_s)
                    if wait_s is None
                    else self._call(self._transport.metadata, wait_s, STARTING)
                )
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
        return answers.all_of(self._each(contract.SERVING_DEFAULT, answers.caption_result, images))

    def explain(self, images: Sequence[bytes]) -> list[Explained]:
        """Captions with the attention of every word; raises as `caption`."""
        return answers.all_of(self._each(contract.EXPLAIN, answers.explained, images))

    def nbest(self, images: Sequence[bytes]) -> list[list[Hypothesis]]:
        """All K captions of every image, best first; raises as `caption`."""
        return answers.all_of(self._each(contract.NBEST, answers.hypotheses, images))

    def caption_each(
        self, images: Sequence[bytes], fill_to: int = 0
    ) -> list[CaptionResult | ItemFailure]:
        """As `caption`; an image that the model refuses has its failure in its place.

        Args:
          images: canonical image bytes.
          fill_to: images that the request has at least, with fillers whose rows are dropped. The
            last digits of a row depend on how many images are computed with it; of a request as
            large as the server's batches, that is the request's number and nobody else's. Images
            that take several requests are not filled up, nor the halves of one that was refused.
        """
        return list(self._each(contract.SERVING_DEFAULT, answers.caption_result, images, fill_to))

    def explain_each(
        self, images: Sequence[bytes], fill_to: int = 0
    ) -> list[Explained | ItemFailure]:
        """As `explain`, each in its place and with fillers as `caption_each`."""
        return list(self._each(contract.EXPLAIN, answers.explained, images, fill_to))

    def nbest_each(
        self, images: Sequence[bytes], fill_to: int = 0
    ) -> list[list[Hypothesis] | ItemFailure]:
        """As `nbest`, each in its place and with fillers as `caption_each`."""
        return list(self._each(contract.NBEST, answers.hypotheses, images, fill_to))

    def _each(
        self,
        signature: str,
        read: Callable[[Row], _Answer],
        images: Sequence[bytes],
        fill_to: int = 0,
    ) -> Iterator[_Answer | ItemFailure]:
        self.check()
        first, *others = list(split(images, self._limits)) or [[]]
        fillers = 0 if others else max(0, min(fill_to, self._limits.images) - len(first))
        for batch in (first, *others) if first else ():
            deadline_s = self._clock.now_s() + self._timeout_s
            for row in self._rows(signature, batch, deadline_s, fillers):
                yield row if isinstance(row, ItemFailure) else read(row)

    def _rows(
        self, signature: str, images: Sequence[bytes], deadline_s: float, fillers: int = 0
    ) -> Iterator[Row | ItemFailure]:
        """One request's rows; of a request that is refused as a whole, those of its halves."""
        sent = [*images, *repeat(FILLER, fillers)]
        predict = partial(self._transport.predict, signature, sent)
        try:
            answer = self._call(predict, deadline_s - self._clock.now_s())
        except (InvalidRequest, AnswerTooLarge) as error:
            if len(images) == 1:
                # A limit that the server's operator or ours must raise is no image's fault.
                if isinstance(error, AnswerTooLarge):
                    raise
                yield ItemFailure(Reason.MODEL_ERROR, str(error))
                return
            half = len(images) // 2
            for part in (images[:half], images[half:]):
                yield from self._rows(signature, part, deadline_s)
            return
        version = self.check().version
        for row in islice(answers.rows(signature, answer, len(sent), version), len(images)):
            yield answers.failure(row) or row

    def _call(
        self,
        attempt: Callable[[float], _Answer],
        timeout_s: float,
        retries: Retries | None = None,
    ) -> _Answer:
        retries = retries or self._retries
        try:
            return retry.call(attempt, timeout_s=timeout_s, retries=retries, clock=self._clock)
        except CallFailed as error:
            raise meaning(error) from error


def connect(
    *,
    model: str | None,
    server: str | None,
    model_name: str = contract.DEFAULT_MODEL_NAME,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    wait_s: float = CONNECT_TIMEOUT_S,
) -> Client:
    """A client for `--model MODELS/NAME` (in this process) or `--server HOST:PORT[,…]`.

    Args:
      model: MODELS/NAME or MODELS/NAME/VERSION, or None.
      server: addresses, or None.
      model_name: name under which the server knows the model.
      timeout_s: as `connect_to`.
      wait_s: seconds to keep asking while nobody listens or the model is loading.

    Raises:
      InvalidInput, ServerUnavailable, ModelMismatch: as `connect_to`.
    """
    target = Target(model, server, model_name, wait_s)
    return connect_to(target, timeout_s=timeout_s)


def connect_to(target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Client:
    """A client for a target, whose model has answered and is ours.

    Args:
      target: where captions come from.
      timeout_s: seconds for each later request with all its attempts, at least twice of what
        an answer takes. A model in this process is never interrupted.

    Raises:
      InvalidInput: the target cannot be used.
      ServerUnavailable: nobody answers within its `wait_s`, or (NotReady) the model is loading.
      ModelMismatch: the model is not ours.
    """
    if target.model is not None:
        transport = SavedModelTransport(target.model)
        client = Client(transport, timeout_s=math.inf, retries=IN_PROCESS)
    else:
        client = Client(GrpcTransport(target), timeout_s=timeout_s)
    try:
        client.check(target.wait_s)
    except ServerUnavailable as error:
        client.close()
        raise target.absence(error) from error
    except BaseException:
        client.close()
        raise
    return client
