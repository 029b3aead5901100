"""The REST API answers as TensorFlow Serving's does."""

import base64
import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from model.errors import InvalidInput
from serving import contract, rest_api, rest_json
from serving.errors import CallFailed
from serving.http_server import HttpServer
from serving.monitoring import Monitor
from serving.rest_api import RestApi
from serving.server import Server
from serving.service import Asked, Predicted, Service
from serving.versions import State, VersionStatus
from tests.serving_fixtures import CELLS, TOKENS, running_server, save_tiny_model, tiny_caption
from tests.test_serving_operation import Gate

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model_dir = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", version=7)
    with running_server(model_dir, rest_port=0, max_message_bytes=3 * 2**20) as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    return f"http://{server.rest_address}/v1/models/tiny"


def b64(image: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(image).decode()}


def post(url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = requests.post(f"{url}:predict", data=data, timeout=TIMEOUT_S)
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()


IMAGES = [b"\xff\xd8\x00", b"", b"\x00" * 40]


@pytest.mark.parametrize(
    "instances",
    [
        [b64(image) for image in IMAGES],
        [{"image_bytes": b64(image)} for image in IMAGES],
    ],
)
def test_rows_are_answered_as_rows(url: str, instances: Any) -> None:
    status, answer = post(url, {"instances": instances})
    assert status == 200
    assert list(answer) == ["predictions"]
    assert [row["caption"] for row in answer["predictions"]] == [tiny_caption(i) for i in IMAGES]
    first = answer["predictions"][0]
    assert set(first) == set(contract.OUTPUTS[contract.SERVING_DEFAULT])
    assert first["token_ids"] == [3, 4, 0, 0]
    assert (first["length"], first["status"], first["log_prob"]) == (2, 0, -0.75)


def test_columns_are_answered_as_columns(url: str) -> None:
    images = [b64(image) for image in IMAGES]
    for inputs in (images, {"image_bytes": images}):
        status, answer = post(url, {"signature_name": "explain", "inputs": inputs})
        assert status == 200
        outputs = answer["outputs"]
        assert outputs["caption"] == [tiny_caption(image) for image in IMAGES]
        assert outputs["words"][0] == ["size", "3", "", ""]
        assert [len(outputs["attention"][0]), len(outputs["attention"][0][0])] == [TOKENS, CELLS]
        assert outputs["attention"][2][1] == [0.0, 1.0, *[0.0] * (CELLS - 2)]


def test_a_version_can_be_asked_for(url: str) -> None:
    status, answer = post(f"{url}/versions/7", {"instances": [b64(b"a")]})
    assert (status, answer["predictions"][0]["caption"]) == (200, tiny_caption(b"a"))
    assert post(f"{url}/versions/8", {"instances": [b64(b"a")]}) == (
        404,
        {"error": "Servable not found for request: Specific(tiny, 8)"},
    )
    assert post(f"{url}/labels/stable", {"instances": [b64(b"a")]}) == (
        400,
        {"error": "Unrecognized servable version label: stable"},
    )
    assert post(url.replace("tiny", "other"), {"instances": [b64(b"a")]}) == (
        404,
        {"error": "Servable not found for request: Latest(other)"},
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"{", "JSON Parse error: "),
        (b"\xff", "JSON Parse error: "),
        (b"[" * 100_000, "JSON Parse error: "),
        ([1], "JSON Value: [1] Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [], "inputs": []}, "only one of 'inputs' or 'instances'"),
        ({"instances": {}}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"signature_name": 3, "instances": ["a"]}, "'signature_name' must be a string"),
        ({"signature_name": "x", "instances": ["a"]}, 'Serving signature key "x" not found.'),
        ({"instances": [3]}, "JSON Value: 3 Type: int is not of expected type: string"),
        ({"instances": [None]}, "is not of expected type: string"),
        ({"instances": [{"b64": 3}]}, "not formatted correctly for base64 data"),
        ({"instances": [{"b64": "!"}]}, "Unable to base64 decode"),
        ({"instances": [{"pixels": "a"}]}, "keys must be equal to: image_bytes"),
        ({"instances": [["a"]]}, "Expects image_bytes to be string [?] but string [1,1]"),
        ({"instances": [["a"], "b"]}, "found at incorrect level: 2"),
        ({"instances": [["a"], ["b", "c"]]}, "Encountered list at unexpected size: 2"),
        ({"inputs": {"pixels": ["a"]}}, "Missing named input: image_bytes in 'inputs' object."),
        ({"inputs": "a"}, "Expects image_bytes to be string [?] but string [] is provided"),
    ],
)
def test_a_wrong_body_is_named(url: str, body: Any, message: str) -> None:
    status, answer = post(url, body)
    assert status == 400
    assert list(answer) == ["error"]
    assert message in answer["error"]


def test_a_list_nested_in_lists_is_refused_without_recursion(url: str) -> None:
    nested = b'{"instances": ' + b"[" * 900 + b"]" * 900 + b"}"
    status, answer = post(url, nested)
    assert status == 400
    assert "nested 900 lists deep" in answer["error"]


def test_a_body_beyond_the_limit_is_refused(url: str) -> None:
    fits = {"instances": [b64(bytes(2 * 2**20))]}
    assert post(url, fits)[0] == 200
    status, answer = post(url, {"instances": [b64(bytes(4 * 2**20))]})
    assert status == 429
    assert "Received message larger than max" in answer["error"]


class Sending:
    """A predict request whose body comes in parts."""

    def __init__(self, address: str | None, length: int) -> None:
        assert address is not None
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        head = f"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: {host}\r\n"
        self.send(f"{head}Content-Length: {length}\r\n\r\n".encode())

    def send(self, part: bytes) -> None:
        self._socket.sendall(part)

    def answer(self) -> tuple[int, Any]:
        with contextlib.closing(HTTPResponse(self._socket)) as answer:
            answer.begin()
            return answer.status, json.loads(answer.read())

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def sending(address: str | None, length: int) -> Iterator[Sending]:
    with contextlib.closing(Sending(address, length)) as request:
        yield request


def counted(server: Server, code: str) -> float:
    """Predict requests over REST that ended so."""
    text = requests.get(f"http://{server.rest_address}/metrics", timeout=TIMEOUT_S).text
    name = f'captionbeam_requests_total{{api="rest",code="{code}",method="Predict"}} '
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def wait_until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.01)


ONE = json.dumps({"instances": [b64(b"a")]}).encode()


def test_a_body_whose_length_is_beyond_the_limit_is_refused_unread(server: Server) -> None:
    with sending(server.rest_address, 4 * 2**20 + 1) as request:
        status, answer = request.answer()
    message = f"Received message larger than max ({4 * 2**20 + 1} vs. {4 * 2**20})"
    assert (status, answer) == (429, {"error": message})


def test_a_body_that_trickles_in_has_a_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_api, "TIMEOUT_S", 0.3)
    before = counted(server, "DEADLINE_EXCEEDED")
    with sending(server.rest_address, len(ONE)) as request:
        request.send(ONE[:10])
        status, answer = request.answer()
    message = (
        "10 bytes of the request came in 0.3 s, expected all of it; send fewer images at a time"
    )
    assert (status, answer) == (504, {"error": message})
    assert counted(server, "DEADLINE_EXCEEDED") == before + 1


def test_the_deadline_counts_from_the_requests_arrival(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float] = []
    predict = Service.predict

    def noted(service: Service, asked: Asked) -> Predicted:
        deadlines.append(asked.deadline_s)
        return predict(service, asked)

    monkeypatch.setattr(Service, "predict", noted)
    before_s = time.time()
    with sending(server.rest_address, len(ONE)) as request:
        time.sleep(0.5)
        late_s = time.time()
        request.send(ONE)
        assert request.answer()[0] == 200
    assert before_s <= deadlines[0] - rest_api.TIMEOUT_S < late_s


def test_what_waits_beyond_its_deadline_is_not_computed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    monkeypatch.setattr(rest_api, "TIMEOUT_S", 0.2)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(post, url, {"instances": [b64(b"a")]})
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        time.sleep(0.3)
        gate.opened.set()
        expected = (504, {"error": "Deadline Exceeded before the batch began"})
        assert asking.result(TIMEOUT_S) == expected


def test_a_client_that_hangs_up_is_counted_as_cancelled(
    server: Server, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {code: counted(server, code) for code in ("CANCELLED", "INTERNAL")}
    with sending(server.rest_address, len(ONE)) as request:
        request.send(ONE[:10])
    wait_until(lambda: counted(server, "CANCELLED") == before["CANCELLED"] + 1)
    assert counted(server, "INTERNAL") == before["INTERNAL"]
    assert "Traceback" not in capfd.readouterr().err
    assert post(url, ONE)[0] == 200


class Held:
    """A service whose predictions wait until they are let go."""

    def __init__(self) -> None:
        self.monitor = Monitor()
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def predict(self, asked: Asked) -> Predicted:
        self.entered.release()
        assert self.opened.wait(TIMEOUT_S)
        images = asked.decode()[contract.IMAGE_BYTES]
        return Predicted(1, asked.signature, {contract.CAPTION: images})

    def status(self, *_: Any) -> list[VersionStatus]:
        return [VersionStatus(1, State.AVAILABLE)]

    def metadata(self, *_: Any) -> tuple[int, dict[str, Any]]:
        return 1, {}


PREDICTED_AT_A_TIME = 2


@contextlib.contextmanager
def answering(service: Any, max_message_bytes: int) -> Iterator[str]:
    """Address of a REST API over a stand-in for the service."""
    app = RestApi(service, max_message_bytes, PREDICTED_AT_A_TIME).app
    http = HttpServer(app, "127.0.0.1", 0, None, None)
    http.start()
    try:
        yield http.address
    finally:
        http.stop(0)


def test_the_bytes_of_bodies_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_api, "_LARGEST_BODIES", 1)
    monkeypatch.setattr(rest_api, "_LEAST_HELD_BYTES", 0)
    service = Held()
    service.opened.set()
    large = ONE + b" " * 3000
    with answering(service, 3072) as address, sending(address, len(large)) as request:
        url = f"http://{address}/v1/models/tiny"
        request.send(large[:-1])
        wait_until(lambda: post(url, large)[0] == 429)
        status, answer = post(url, large)
        assert status == 429
        assert "bytes are read or answered, at most 4096 bytes may be" in answer["error"]
        # There is room for a small one.
        assert post(url, ONE)[0] == 200
        request.send(large[-1:])
        assert request.answer()[0] == 200
        wait_until(lambda: post(url, large)[0] == 200)


def test_predictions_take_no_place_of_status_and_metadata() -> None:
    service = Held()
    with answering(service, 3072) as address, ThreadPoolExecutor(PREDICTED_AT_A_TIME) as pool:
        url = f"http://{address}/v1/models/tiny"
        asking = [pool.submit(post, url, ONE) for _ in range(PREDICTED_AT_A_TIME)]
        for _ in asking:
            assert service.entered.acquire(timeout=TIMEOUT_S)
        refusal = "2 requests are predicted, at most 2 may be; try again later"
        assert post(url, ONE) == (429, {"error": refusal})
        assert requests.get(url, timeout=TIMEOUT_S).ok
        assert requests.get(f"{url}/metadata", timeout=TIMEOUT_S).ok
        service.opened.set()
        for asked in asking:
            assert asked.result(TIMEOUT_S) == (200, {"predictions": [{"caption": "a"}]})


def test_bodies_that_trickle_in_take_no_place_of_predictions() -> None:
    service = Held()
    service.opened.set()
    with answering(service, 3072) as address, contextlib.ExitStack() as open_requests:
        for _ in range(2 * PREDICTED_AT_A_TIME):
            open_requests.enter_context(sending(address, len(ONE))).send(ONE[:10])
        assert post(f"http://{address}/v1/models/tiny", ONE)[0] == 200


def test_a_request_under_way_is_answered_while_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(save_tiny_model(tmp_path / "tiny"), rest_port=0) as server:
        gate = Gate(monkeypatch)
        assert server.rest_address is not None
        host, _, port = server.rest_address.rpartition(":")

        def refused() -> bool:
            try:
                socket.create_connection((host, int(port)), TIMEOUT_S).close()
            except ConnectionRefusedError:
                return True
            return False

        with ThreadPoolExecutor(2) as pool:
            asking = pool.submit(post, f"http://{host}:{port}/v1/models/tiny", ONE)
            assert gate.entered.acquire(timeout=TIMEOUT_S)
            stopping = pool.submit(server.stop)
            wait_until(refused)
            assert not stopping.done()
            gate.opened.set()
            status, answer = asking.result(TIMEOUT_S)
            stopping.result(TIMEOUT_S)
    assert (status, answer["predictions"][0]["caption"]) == (200, tiny_caption(b"a"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/tiny:predict"),
        ("POST", "/v1/models/tiny"),
        ("POST", "/v1/models/tiny:classify"),
        ("GET", "/v1/models/tiny/versions/x"),
        ("GET", "/v1/models/tiny/nothing"),
        ("GET", "/v1/"),
    ],
)
def test_other_paths_are_malformed(server: Server, method: str, path: str) -> None:
    answer = requests.request(method, f"http://{server.rest_address}{path}", timeout=TIMEOUT_S)
    assert answer.status_code == 400
    assert answer.json() == {"error": f"Malformed request: {method} {path}"}


@pytest.mark.parametrize(
    ("method", "path", "status", "why"),
    [
        ("PUT", "/v1/models/tiny:predict", 405, "Method Not Allowed"),
        ("POST", "/metrics", 405, "Method Not Allowed"),
        ("GET", "/", 404, "Not Found"),
        ("POST", "/v2/models/tiny/infer", 404, "Not Found"),
    ],
)
def test_whatever_else_is_asked_for_is_refused_in_json(
    server: Server, method: str, path: str, status: int, why: str
) -> None:
    answer = requests.request(method, f"http://{server.rest_address}{path}", timeout=TIMEOUT_S)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json() == {"error": f"{why}: {method} {path}"}
    assert ("allow" in answer.headers) == (status == 405)


def test_status_is_tensorflow_servings_json(url: str) -> None:
    expected = {
        "model_version_status": [
            {
                "version": "7",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    for path in ("", "/versions/7"):
        assert requests.get(url + path, timeout=TIMEOUT_S).json() == expected
    missing = requests.get(f"{url}/versions/8", timeout=TIMEOUT_S)
    assert missing.status_code == 404
    assert missing.json() == {"error": "Could not find version 8 of model tiny"}


def test_metadata_is_tensorflow_servings_json(url: str) -> None:
    answer = requests.get(f"{url}/metadata", timeout=TIMEOUT_S).json()
    assert answer["model_spec"] == {"name": "tiny", "signature_name": "", "version": "7"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    image_bytes = signatures["serving_default"]["inputs"]["image_bytes"]
    assert image_bytes["dtype"] == "DT_STRING"
    assert image_bytes["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]
    assert signatures["explain"]["method_name"] == "tensorflow/serving/predict"


def test_metrics_count_requests_batches_and_times(server: Server, url: str) -> None:
    def value(line: str) -> float:
        text = requests.get(f"http://{server.rest_address}/metrics", timeout=TIMEOUT_S).text
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    ok = 'captionbeam_requests_total{api="rest",code="OK",method="Predict"}'
    refused = 'captionbeam_requests_total{api="rest",code="INVALID_ARGUMENT",method="Predict"}'
    images = 'captionbeam_images_total{signature="serving_default"}'
    names = (ok, refused, images, "captionbeam_batch_size_sum", "captionbeam_batch_size_count")
    times = ("captionbeam_queue_seconds_count", "captionbeam_compute_seconds_count")
    before = [value(name) for name in (*names, *times)]
    post(url, {"instances": [b64(image) for image in IMAGES]})
    post(url, b"")
    after = [value(name) for name in (*names, *times)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 3, 3, 1, 1, 1]
    assert value('captionbeam_model_version{model="tiny"}') == 7
    assert value("captionbeam_images_under_way") == 0
    where = f"http://{server.rest_address}/monitoring/prometheus/metrics"
    assert "captionbeam_requests_total" in requests.get(where, timeout=TIMEOUT_S).text


def test_numbers_are_as_short_as_their_type_allows() -> None:
    outputs = {
        "log_prob": np.array([0.2, -math.inf], np.float32),
        "caption": np.array(["é".encode(), b""], dtype=object),
    }
    answer = rest_json.answer(rest_json.INPUTS, outputs)
    assert json.dumps(answer["outputs"]["log_prob"]) == "[0.2, -Infinity]"
    assert answer["outputs"]["caption"] == ["é", ""]


def test_base64_is_taken_unpadded_and_in_lines() -> None:
    text = base64.encodebytes(bytes(range(100))).decode().replace("=", "")
    _, _, images = rest_json.parse(json.dumps({"instances": [{"b64": text}]}).encode())
    assert images.tolist() == [bytes(range(100))]
    with pytest.raises(CallFailed, match="Unable to base64 decode"):
        rest_json.parse(json.dumps({"instances": [{"b64": "A"}]}).encode())


def test_a_wrong_value_is_shown_by_its_beginning_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {str(number): "a" for number in range(100_000)}
    body = json.dumps({"instances": rows}).encode()
    written: list[str] = []
    iterencode = json.JSONEncoder.iterencode

    def noted(encoder: json.JSONEncoder, value: Any, **options: Any) -> Iterator[str]:
        for part in iterencode(encoder, value, **options):
            written.append(part)
            yield part

    monkeypatch.setattr(json.JSONEncoder, "iterencode", noted)
    with pytest.raises(CallFailed) as caught:
        rest_json.parse(body)
    shown = '{"instances": {"0": "a", "1": "a", "2": "a",'
    assert caught.value.message.startswith(f"JSON Value: {shown}")
    assert caught.value.message.endswith("… Expecting 'instances' to be an list/array")
    assert len("".join(written)) < 200


def test_a_port_that_another_begins_to_listen_on_is_named() -> None:
    one = HttpServer(None, "127.0.0.1", 0, None, None)
    # Both can be bound as long as neither listens.
    other = HttpServer(None, "127.0.0.1", int(one.address.rpartition(":")[2]), None, None)
    try:
        one.start()
        with pytest.raises(InvalidInput, match=rf"cannot answer on {one.address} .*--rest_port"):
            other.start()
    finally:
        other.stop(0)
        one.stop(0)
