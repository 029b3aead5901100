"""Other people's clients against our server, our client against another people's server.

Opt-in (`make peers`), since each peer has an environment of its own.
"""

import base64
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import CaptionbeamError
from serving import contract
from serving.answers import Answer
from serving.batches import RequestLimits
from serving.client import Client, Target, connect
from serving.errors import CallFailed, ServerError, ServerUnavailable
from serving.metadata import ModelMetadata, Signature, TensorSpec
from serving.retry import Clock, Retries
from serving.transport import GrpcTransport
from tests.peer_fixtures import (
    ask,
    captionbeam_serve,
    program,
    pythie_caption,
    pythie_serving,
    read_address,
)
from tests.serving_fixtures import TOKENS, save_tiny_model, tiny_caption

pytestmark = pytest.mark.peers

NAME = "tiny"
VERSION = 7
TIMEOUT_S = 60.0
# None ends in zeros: ovmsclient keeps bytes in NumPy arrays of one width, which drop them.
IMAGES = [b"\xff\xd8\xff\xe0 one \xff\xd9", b"GIF89a two;", b"\x89PNG\0\0\0 three \xaeB`\x82"]
WIRE_TYPES = {"string": "DT_STRING", "int32": "DT_INT32", "float32": "DT_FLOAT"}
CAPTION_OUTPUTS = contract.OUTPUTS[contract.SERVING_DEFAULT]
# gRPC's own limit, which pythie-serving leaves alone.
PYTHIE_MAX_BYTES = 4 * 2**20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`captionbeam serve`: where its gRPC and its REST listen."""
    model_dir = save_tiny_model(tmp_path_factory.mktemp("models") / NAME, VERSION)
    with captionbeam_serve(model_dir) as lines:
        yield {
            "grpc": read_address(lines, f"serving {NAME} version {VERSION} on "),
            "rest": read_address(lines, "REST on http://"),
        }


@pytest.fixture(scope="module", params=["grpc", "rest"], name="ovmsclient")
def ovmsclient_answer(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What ovmsclient got from our server."""
    program("ovmsclient")
    transport = request.param
    question = {
        "transport": transport,
        "address": request.getfixturevalue("served")[transport],
        "model": NAME,
        "version": VERSION,
        "input": contract.IMAGE_BYTES,
        "images": [base64.b64encode(image).decode() for image in IMAGES],
        "refused": base64.b64encode(b"bad").decode(),
    }
    return ask("ovmsclient", question) | {"transport": transport}


def test_ovmsclient_gets_captions(ovmsclient: dict[str, Any]) -> None:
    answer = ovmsclient["predict"]
    sizes = [len(image) for image in IMAGES]
    assert answer == {
        contract.STATUS: [0, 0, 0],
        contract.CAPTION: [tiny_caption(image) for image in IMAGES],
        contract.LOG_PROB: [-size / 4 for size in sizes],
        contract.TOKEN_IDS: [[size, size + 1, 0, 0] for size in sizes],
        contract.LENGTH: [2, 2, 2],
    }


def test_ovmsclient_gets_metadata(ovmsclient: dict[str, Any]) -> None:
    metadata = ovmsclient["metadata"]
    if ovmsclient["transport"] == "grpc":
        assert metadata["model_version"] == VERSION
        found = metadata
        shapes = {name: output["shape"] for name, output in found["outputs"].items()}
    else:
        # ovmsclient looks for its own server's `modelSpec` and passes on whatever else it gets.
        assert metadata["model_spec"] == {
            "name": NAME,
            "signature_name": "",
            "version": str(VERSION),
        }
        signatures = metadata["metadata"]["signature_def"]["signature_def"]
        assert set(contract.OUTPUTS) <= set(signatures)
        found = signatures[contract.SERVING_DEFAULT]
        shapes = {
            name: [int(dim["size"]) for dim in output["tensor_shape"]["dim"]]
            for name, output in found["outputs"].items()
        }
    assert {name: tensor["dtype"] for name, tensor in found["inputs"].items()} == {
        contract.IMAGE_BYTES: "DT_STRING"
    }
    assert {name: tensor["dtype"] for name, tensor in found["outputs"].items()} == {
        name: WIRE_TYPES[tensor.dtype] for name, tensor in CAPTION_OUTPUTS.items()
    }
    assert shapes == {
        name: [-1, TOKENS][: len(tensor.dims)] for name, tensor in CAPTION_OUTPUTS.items()
    }


def test_ovmsclient_gets_the_status(ovmsclient: dict[str, Any]) -> None:
    assert ovmsclient["status"] == {
        str(VERSION): {"state": "AVAILABLE", "error_code": 0, "error_message": ""}
    }


def test_ovmsclient_knows_our_errors(ovmsclient: dict[str, Any]) -> None:
    errors = ovmsclient["errors"]
    for wrong in ("model", "version", "version 0", "metadata", "status"):
        assert errors[wrong][0] == "ModelNotFoundError", wrong
    for wrong in ("input", "image"):
        assert errors[wrong][0] == "InvalidInputError", wrong
    assert f"Servable not found for request: Specific({NAME}, 0)" in errors["version 0"][1]
    assert f"Could not find version {VERSION} of model absent" in errors["status"][1]
    assert "cannot decode" in errors["image"][1]


def test_ovmsclient_knows_an_error_that_quotes_image_bytes(ovmsclient: dict[str, Any]) -> None:
    """A failed assertion prints what it looked at: the neighbours' bytes, which are no text."""
    kind, message = ovmsclient["errors"]["batch"]
    assert kind == "InvalidInputError"
    assert "cannot decode" in message


def test_min_tfs_client_gets_captions(served: dict[str, str]) -> None:
    """It reads typed fields alone (float_val, int_val, string_val) and sends text alone."""
    texts = ["one", "three"]
    question = {"address": served["grpc"], "model": NAME, "version": VERSION}
    answer = ask("min_tfs_client", question | {"input": contract.IMAGE_BYTES, "images": texts})
    assert answer["predict"] == {
        contract.STATUS: [0, 0],
        contract.CAPTION: [tiny_caption(text.encode()) for text in texts],
        contract.LOG_PROB: [-0.75, -1.25],
        contract.TOKEN_IDS: [[3, 4, 0, 0], [5, 6, 0, 0]],
        contract.LENGTH: [2, 2],
    }


@pytest.fixture(scope="module")
def pythie(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcTransport]:
    """Our transport to a pythie-serving that takes inputs of shape [N], and any number of calls."""
    place = tmp_path_factory.mktemp("rows")
    with pythie_serving(place, NAME, "--maximum-concurrent-rpcs=-1") as address:
        transport = GrpcTransport(Target(None, address, NAME))
        yield transport
        transport.close()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcTransport]:
    """As `pythie`, with one call at a time: its default."""
    with pythie_serving(tmp_path_factory.mktemp("narrow"), NAME) as address:
        transport = GrpcTransport(Target(None, address, NAME))
        yield transport
        transport.close()


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """pythie-serving as it is installed; HOST:PORT."""
    place, any_number = tmp_path_factory.mktemp("stock"), "--maximum-concurrent-rpcs=-1"
    with pythie_serving(place, NAME, any_number, rows=False) as address:
        yield address


class Completed:
    """A transport to pythie-serving that adds what it has not: metadata, and our other outputs.

    Attributes:
      calls: number of images in every predict.
    """

    def __init__(self, inner: GrpcTransport) -> None:
        self._inner = inner
        self.calls: list[int] = []

    def predict(self, signature: str, image_bytes: Sequence[bytes], timeout_s: float) -> Answer:
        self.calls.append(len(image_bytes))
        answer = self._inner.predict(signature, image_bytes, timeout_s)
        predictions = answer.outputs["predictions"]
        zeros = np.zeros([len(predictions), 1], np.int32)
        outputs = {
            contract.STATUS: zeros[:, 0],
            contract.CAPTION: predictions[:, 0],
            contract.LOG_PROB: zeros[:, 0].astype(np.float32),
            contract.TOKEN_IDS: zeros,
            contract.LENGTH: zeros[:, 0],
        }
        return Answer(outputs, answer.version)

    def metadata(self, timeout_s: float) -> ModelMetadata:  # noqa: ARG002
        signatures = {
            name: Signature(_specs(contract.INPUTS), _specs(outputs))
            for name, outputs in contract.OUTPUTS.items()
        }
        return ModelMetadata(NAME, VERSION, signatures)

    def close(self) -> None:
        """The fixture closes the inner one."""


def _specs(tensors: Any) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(tensor.dtype, (None,) * len(tensor.dims))
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_pythie_serving_answers_our_transport(pythie: GrpcTransport, count: int) -> None:
    # Zeros at an end and bytes that are no text arrive as they are.
    images = [b"\xff\xd8\0 %d \0\0" % number for number in range(count)]
    outputs = pythie.predict(contract.SERVING_DEFAULT, images, TIMEOUT_S).outputs
    assert list(outputs) == ["predictions"]
    assert outputs["predictions"].tolist() == [[pythie_caption(image)] for image in images]


def test_pythie_serving_answers_our_client_from_many_threads(narrow: GrpcTransport) -> None:
    """It takes one call at a time and refuses the others; each of ours is answered in the end."""
    groups = [[b"image %d of %d" % (k, n) for k in range(3)] for n in range(8)]
    retries = Retries(attempts=50)
    with (
        Client(Completed(narrow), timeout_s=TIMEOUT_S, retries=retries) as client,
        ThreadPoolExecutor(len(groups)) as threads,
    ):
        found = list(threads.map(client.caption, groups))
    assert [[result.caption.encode() for result in results] for results in found] == [
        [pythie_caption(image) for image in images] for images in groups
    ]


@contextlib.contextmanager
def _held(transport: GrpcTransport, place: Path) -> Iterator[Callable[[], None]]:
    """Keeps a server of one call busy, until the block ends or calls what it is given."""
    image = b"hold " + str(place).encode()

    def hold() -> None:
        # A server counts a call for a moment longer than its client waits for it.
        with Client(Completed(transport), timeout_s=TIMEOUT_S) as client:
            client.caption([image])

    def let_go() -> None:
        (place / "go").touch()
        holding.result()

    with ThreadPoolExecutor(1) as thread:
        holding = thread.submit(hold)
        deadline_s = time.monotonic() + TIMEOUT_S
        while not (place / "held").exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        try:
            yield let_go
        finally:
            let_go()


def test_a_busy_server_is_asked_again(narrow: GrpcTransport, tmp_path: Path) -> None:
    transport = Completed(narrow)
    with _held(narrow, tmp_path) as let_go:

        def pause(seconds: float) -> None:
            let_go()
            time.sleep(seconds)

        clock = Clock(sleep=pause, uniform=lambda: 1.0)
        with Client(transport, timeout_s=TIMEOUT_S, clock=clock) as client:
            (result,) = client.caption([b"asked again"])
    assert result.caption.encode() == pythie_caption(b"asked again")
    assert len(transport.calls) >= 2


def test_a_server_that_stays_busy_is_unavailable(narrow: GrpcTransport, tmp_path: Path) -> None:
    transport = Completed(narrow)
    with (
        _held(narrow, tmp_path),
        Client(transport, retries=Retries(attempts=3, base_s=0.01)) as client,
        pytest.raises(ServerUnavailable, match="RESOURCE_EXHAUSTED: Concurrent RPC limit"),
    ):
        client.caption([b"refused"])
    assert transport.calls == [1, 1, 1]


def test_a_failure_of_the_model_is_not_asked_again(pythie: GrpcTransport) -> None:
    """pythie-serving says UNKNOWN of whatever fails: no retry, no halves, its own words."""
    transport = Completed(pythie)
    with (
        Client(transport) as client,
        pytest.raises(ServerError, match=r"UNKNOWN: .*cannot decode"),
    ):
        client.caption([b"good", b"bad"])
    assert transport.calls == [2]


def test_more_than_4_mib_goes_in_several_requests(pythie: GrpcTransport) -> None:
    transport = Completed(pythie)
    images = [bytes([number]) * (PYTHIE_MAX_BYTES // 4) for number in range(5)]
    limits = RequestLimits(image_bytes=PYTHIE_MAX_BYTES // 2)
    with Client(transport, timeout_s=TIMEOUT_S, limits=limits) as client:
        results = client.caption(images)
    assert [result.caption.encode() for result in results] == list(map(pythie_caption, images))
    assert transport.calls == [2, 2, 1]


def test_a_request_over_the_servers_limit_is_named(pythie: GrpcTransport) -> None:
    with pytest.raises(CallFailed) as caught:
        pythie.predict(contract.SERVING_DEFAULT, [bytes(PYTHIE_MAX_BYTES)], TIMEOUT_S)
    # Refused, not to be waited for: gRPC's own code is RESOURCE_EXHAUSTED.
    assert caught.value.code == "INVALID_ARGUMENT"
    assert re.search(rf"larger than max \(\d+ vs\. {PYTHIE_MAX_BYTES}\)", str(caught.value))


def test_stock_pythie_serving_refuses_our_shape_and_names(stock: str) -> None:
    """It wants [N, 1]; TensorFlow Serving takes the shape of the model's signature, [N]."""
    shape, name = (GrpcTransport(Target(None, stock, name)) for name in (NAME, "absent"))
    said = {}
    for transport in (shape, name):
        with pytest.raises(CallFailed) as caught:
            transport.predict(contract.SERVING_DEFAULT, [b"image"], TIMEOUT_S)
        said[transport] = str(caught.value)
        transport.close()
    assert said[shape].startswith("UNKNOWN: ")
    assert said[shape].endswith("All input vectors should be 1D tensor")
    assert said[name].startswith("UNKNOWN: ")
    assert "Unknown model: absent." in said[name]


def test_connect_refuses_a_server_without_metadata(stock: str) -> None:
    with pytest.raises(CaptionbeamError, match="UNIMPLEMENTED"):
        connect(model=None, server=stock, model_name=NAME)
