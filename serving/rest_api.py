"""TensorFlow Serving's REST API over a Service, and /metrics, as an ASGI application.

GET  /v1/models/NAME[/versions/V|/labels/L]             state of the versions
GET  /v1/models/NAME[/versions/V|/labels/L]/metadata    signatures
POST /v1/models/NAME[/versions/V|/labels/L]:predict     {"instances": [{"b64": …}, …]}
GET  /metrics                                           counters, as Prometheus reads them
"""

import contextlib
import json
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

import anyio
import anyio.to_thread
from google.protobuf import json_format  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2

from serving import contract, grpc_api, rest_json
from serving.errors import DEADLINE_EXCEEDED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, CallFailed
from serving.service import Asked, Service
from serving.transport import SIGNATURE_DEF
from serving.versions import Wanted

# As TensorFlow Serving's --rest_api_timeout_in_ms.
TIMEOUT_S = 30.0
# Bodies are held for as long as they are read and answered: four of the largest at a time, and
# many small ones where the limit of a message is low.
_LARGEST_BODIES = 4
_LEAST_HELD_BYTES = 2**28
# Status and metadata take moments; they wait for one another, never for a prediction.
_SPARE_THREADS = 8
_CANCELLED = "CANCELLED"
# Where Prometheus looks, and where it is told to for TensorFlow Serving.
METRICS_PATHS = ("/metrics", contract.METRICS_PATH)

_MODEL = (
    r"/v1/models/(?P<name>[^/:]+)"
    r"(?:/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+))?"
)
_PREDICT = re.compile(_MODEL + r":predict", re.IGNORECASE)
_ABOUT = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE)
# http_server.cc of TensorFlow Serving.
_HTTP_STATUS = {
    _CANCELLED: 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}


class RestApi:
    """The application's endpoints.

    Args:
      service: what answers.
      max_message_bytes: the largest request, counted as the bytes that its base64 stands for.
      max_requests: predicted at a time; more are refused at once.
    """

    def __init__(self, service: Service, max_message_bytes: int, max_requests: int) -> None:
        self._service = service
        self._bodies = _Bodies(max_message_bytes * 4 // 3)
        self._max_predicting = max_requests
        self._predicting = 0
        # Threads wait for the batch; each prediction has one.
        self._threads = anyio.CapacityLimiter(max_requests)
        self._spare_threads = anyio.CapacityLimiter(_SPARE_THREADS)
        metrics = [Route(path, self._metrics, methods=["GET"]) for path in METRICS_PATHS]
        models = Route("/v1/{path:path}", self._models, methods=["GET", "POST"])
        self.app = Starlette(
            routes=[*metrics, models],
            exception_handlers={HTTPException: _elsewhere},  # type: ignore[dict-item]
        )

    async def _metrics(self, request: Request) -> Response:  # noqa: ARG002
        text = self._service.monitor.to_text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        method, answer = self._route(request)
        code = "INTERNAL"
        try:
            text = await answer()
            code = "OK"
            return Response(text, media_type="application/json")
        except CallFailed as error:
            code = error.code
            return _refusal(error)
        # Its traceback is the log's; the client gets JSON all the same.
        except Exception as error:
            traceback.print_exc()
            return _refusal(CallFailed(code, f"{type(error).__name__}: see the server's log"))
        finally:
            self._service.monitor.count("rest", method, code)

    def _route(self, request: Request) -> tuple[str, Callable[[], Awaitable[str]]]:
        """Name of the RPC that a request stands for, and what answers it."""
        path = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]
        pattern = _PREDICT if request.method == "POST" else _ABOUT
        match = pattern.fullmatch(path)
        if match is None:
            return "unknown", partial(_malformed, f"{request.method} {path}")
        name, label = unquote(match["name"]), match["label"]
        wanted = Wanted(
            None if match["version"] is None else int(match["version"]),
            None if label is None else unquote(label),
        )
        if pattern is _PREDICT:
            return "Predict", partial(self._predict, name, wanted, request)
        if match["metadata"]:
            return "GetModelMetadata", partial(self._tell, self._metadata, name, wanted)
        return "GetModelStatus", partial(self._tell, self._status, name, wanted)

    async def _tell(self, about: Callable[[str, Wanted], str], name: str, wanted: Wanted) -> str:
        return await anyio.to_thread.run_sync(about, name, wanted, limiter=self._spare_threads)

    async def _predict(self, name: str, wanted: Wanted, request: Request) -> str:
        deadline_s = time.time() + TIMEOUT_S
        async with self._bodies.read(request) as body:
            # Only now: a body that trickles in takes nobody's place.
            if self._predicting >= self._max_predicting:
                raise CallFailed(
                    RESOURCE_EXHAUSTED,
                    f"{self._predicting} requests are predicted, at most {self._max_predicting} "
                    "may be; try again later",
                )
            self._predicting += 1
            try:
                predict = partial(self._predicted, name, wanted, body, deadline_s)
                return await anyio.to_thread.run_sync(predict, limiter=self._threads)
            finally:
                self._predicting -= 1

    def _predicted(
        self, name: str, wanted: Wanted, body: bytes | bytearray, deadline_s: float
    ) -> str:
        signature, layout, images = rest_json.parse(body)
        asked = Asked(
            model=name,
            wanted=wanted,
            signature=signature,
            specs={contract.IMAGE_BYTES: rest_json.spec(images)},
            decode=lambda: {contract.IMAGE_BYTES: images},
            outputs=(),
            deadline_s=deadline_s,
        )
        answer = rest_json.answer(layout, self._service.predict(asked).outputs)
        # −inf is written as -Infinity, as TensorFlow Serving does.
        return json.dumps(answer, ensure_ascii=False, indent=4)

    def _metadata(self, name: str, wanted: Wanted) -> str:
        response = grpc_api.metadata_response(self._service, name, wanted)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[SIGNATURE_DEF].Unpack(definitions)
        answer = {
            "model_spec": _fields(response.model_spec, preserving_proto_field_name=True),
            "metadata": {
                SIGNATURE_DEF: _fields(definitions, preserving_proto_field_name=True),
            },
        }
        return json.dumps(answer, indent=4)

    def _status(self, name: str, wanted: Wanted) -> str:
        response = grpc_api.status_response(self._service.status(name, wanted))
        return json.dumps(_fields(response, preserving_proto_field_name=True), indent=1)


class _Bodies:
    """Reads bodies of requests, and bounds how many bytes of them are held at a time.

    Args:
      max_bytes: of one body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_held = max(_LARGEST_BODIES * max_bytes, _LEAST_HELD_BYTES)
        self._held = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body of a request, which counts as held until the context ends.

        Raises:
          CallFailed: RESOURCE_EXHAUSTED, before the body is read where its length is declared;
            DEADLINE_EXCEEDED, it takes more than TIMEOUT_S; CANCELLED, the client hangs up.
        """
        # h11 has seen to it that this is a number.
        self._check_size(int(request.headers.get("content-length", 0)), "")
        body = bytearray()
        try:
            await self._receive(request, body)
            yield body
        finally:
            self._held -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        try:
            with anyio.fail_after(TIMEOUT_S):
                async for chunk in request.stream():
                    self._check_size(len(body) + len(chunk), " or more")
                    self._hold(len(chunk))
                    body += chunk
        except TimeoutError as error:
            raise CallFailed(
                DEADLINE_EXCEEDED,
                f"{len(body)} bytes of the request came in {TIMEOUT_S:g} s, expected all of it; "
                "send fewer images at a time",
            ) from error
        except ClientDisconnect as error:
            raise CallFailed(_CANCELLED, "the client hung up") from error

    def _check_size(self, size: int, or_more: str) -> None:
        if size > self._max_bytes:
            raise CallFailed(
                RESOURCE_EXHAUSTED,
                f"Received message larger than max ({size}{or_more} vs. {self._max_bytes})",
            )

    def _hold(self, size: int) -> None:
        if self._held + size > self._max_held:
            raise CallFailed(
                RESOURCE_EXHAUSTED,
                f"requests of {self._held} bytes are read or answered, at most {self._max_held} "
                "bytes may be; try again later",
            )
        self._held += size


async def _malformed(request: str) -> str:
    raise CallFailed(INVALID_ARGUMENT, f"Malformed request: {request}")


async def _elsewhere(request: Request, error: HTTPException) -> Response:
    """No such path, or not with this method."""
    return _error(
        f"{error.detail}: {request.method} {request.url.path}", error.status_code, error.headers
    )


def _refusal(error: CallFailed) -> Response:
    return _error(error.message, _HTTP_STATUS.get(error.code, 500))


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps({"error": message}), status, headers, "application/json")


def _fields(message: Any, **options: bool) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, **options
    )
    return found
