"""Whatever is sent, the server answers with a code and lives (hypothesis).

`make test-slow` runs 2,000 cases in all.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import requests
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from serving import contract
from serving.contract import Status
from serving.server import Server
from tests.export_fixtures import export_unverified, photographs
from tests.serving_fixtures import predict_request, running_server

TIMEOUT_S = 120
PREDICT = "/tensorflow.serving.PredictionService/Predict"
CASES = 500

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model_dir = export_unverified(tmp_path_factory.mktemp("fuzz"))
    with running_server(model_dir, rest_port=0) as server:
        yield server


@pytest.fixture
def send(server: Server) -> Iterator[Callable[[bytes], Any]]:
    """Sends bytes as a Predict request; the answer, or the name of the status."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(PREDICT, None, predict_pb2.PredictResponse.FromString)

        def sent(request: bytes) -> Any:
            try:
                return call(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                failed: Any = error
                return failed.code().name

        yield sent


def run(strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Checks so many values, the same ones each time."""
    options = settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    options(given(strategy)(check))()


def lives(send: Callable[[bytes], Any]) -> None:
    """A good request after all of it has its caption."""
    answer = send(predict_request(photographs()[:1]).SerializeToString())
    assert tf.make_ndarray(answer.outputs[contract.STATUS]).tolist() == [Status.OK]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of them with some bytes changed, cut off, or repeated."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    begin, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    kind = draw(st.sampled_from(("whole", "head", "tail", "without", "twice")))
    parts = {
        "whole": data,
        "head": data[:end],
        "tail": data[begin:],
        "without": data[:begin] + data[end:],
        "twice": data[:end] + data[begin:],
    }
    return bytes(parts[kind])


def test_messages_that_are_none(send: Callable[[bytes], Any]) -> None:
    good = predict_request(photographs()[:1]).SerializeToString()

    def check(message: bytes) -> None:
        answer = send(message)
        # What cannot be parsed is INTERNAL in gRPC's Python.
        assert isinstance(answer, predict_pb2.PredictResponse) or answer in (
            *("INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"),
        )

    run(st.binary(max_size=200) | mutated([good]), check)
    lives(send)


_TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.integers(0, 30) | st.just(tf.string.as_datatype_enum),
        "dims": st.lists(st.integers(-2, 3) | st.sampled_from([2**31, 2**62]), max_size=3),
        "unknown_rank": st.sampled_from([False, False, True]),
        "string_val": st.lists(st.binary(max_size=20), max_size=3),
        "tensor_content": st.just(b"") | st.binary(max_size=30),
    }
)
_REQUESTS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["tiny", "tiny", "tiny", "", "other"]),
        "version": st.sampled_from([None, None, 1, 0, -1, 2**62]),
        "label": st.sampled_from([None, None, "stable", ""]),
        "signature": st.sampled_from(["", *contract.OUTPUTS, "x"]),
        "inputs": st.dictionaries(
            st.sampled_from([contract.IMAGE_BYTES, contract.IMAGE_BYTES, "x"]), _TENSORS
        ),
        "outputs": st.lists(st.sampled_from([contract.CAPTION, contract.STATUS, "x"]), max_size=3),
    }
)


def _built(drawn: dict[str, Any]) -> predict_pb2.PredictRequest:
    asked = predict_pb2.PredictRequest(output_filter=drawn["outputs"])
    asked.model_spec.name = drawn["name"]
    asked.model_spec.signature_name = drawn["signature"]
    if drawn["version"] is not None:
        asked.model_spec.version.value = drawn["version"]
    if drawn["label"] is not None:
        asked.model_spec.version_label = drawn["label"]
    for name, tensor in drawn["inputs"].items():
        filled = asked.inputs[name]
        filled.dtype = tensor["dtype"]
        filled.tensor_shape.unknown_rank = tensor["unknown_rank"]
        for size in tensor["dims"]:
            filled.tensor_shape.dim.add(size=size)
        filled.string_val.extend(tensor["string_val"])
        filled.tensor_content = tensor["tensor_content"]
    return asked


def test_requests_of_any_kind(send: Callable[[bytes], Any]) -> None:
    def check(drawn: dict[str, Any]) -> None:
        answer = send(_built(drawn).SerializeToString())
        assert isinstance(answer, predict_pb2.PredictResponse) or answer in (
            *("INVALID_ARGUMENT", "NOT_FOUND"),
        )

    run(_REQUESTS, check)
    lives(send)


def test_bytes_that_are_hardly_images(send: Callable[[bytes], Any]) -> None:
    good = photographs()
    pngs = [tf.io.encode_png(tf.io.decode_jpeg(image)).numpy() for image in good[:2]]
    expected = send(predict_request(good[:1]).SerializeToString()).outputs[contract.CAPTION]

    def check(images: list[bytes]) -> None:
        # A good one before them, which they must not change.
        answer = send(predict_request([good[0], *images]).SerializeToString())
        captions = tf.make_ndarray(answer.outputs[contract.CAPTION])
        statuses = tf.make_ndarray(answer.outputs[contract.STATUS])
        assert captions[0] == tf.make_ndarray(expected)[0]
        assert statuses[0] == Status.OK
        for caption, status in zip(captions[1:], statuses[1:], strict=True):
            assert Status(status) is Status.OK or caption == b""

    run(st.lists(st.binary(max_size=60) | mutated([*good, *pngs]), max_size=3), check)
    lives(send)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=8)
    | st.just({"b64": ""})
    | st.builds(lambda text: {"b64": text}, st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([contract.IMAGE_BYTES, "b64", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
_BODIES = st.dictionaries(
    st.sampled_from(["instances", "instances", "inputs", "signature_name", "x"]), _JSON, max_size=3
)


def test_bodies_of_any_kind(server: Server, send: Callable[[bytes], Any]) -> None:
    url = f"http://{server.rest_address}/v1/models/tiny:predict"

    def check(body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with requests.post(url, data=data, timeout=TIMEOUT_S) as answer:
            assert answer.status_code in (200, 400)
            found = answer.json()
        assert set(found) <= {"error", "predictions", "outputs"}
        assert ("error" in found) == (answer.status_code != 200)

    run(st.binary(max_size=80) | _BODIES, check)
    lives(send)
