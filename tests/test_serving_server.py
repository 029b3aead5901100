"""The local server answers as TensorFlow Serving does, through the official stubs."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_array_equal
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from model.errors import InvalidInput
from serving import contract
from serving.batching_parameters import BATCHING_FILE, BatchingParameters
from serving.errors import ModelMismatch
from serving.loaded_model import LoadedModel
from serving.published import describe, find_version
from serving.server import Server
from serving.server_settings import ServerSettings
from tests.serving_fixtures import (
    HYPOTHESES,
    TOKENS,
    predict_request,
    running_server,
    save_foreign_model,
    save_tiny_model,
    tiny_caption,
)

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", version=7)


@pytest.fixture(scope="module")
def server(model_dir: Path) -> Iterator[Server]:
    with running_server(model_dir) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[Any]:
    options = [("grpc.max_receive_message_length", 64 * 2**20)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield channel


@pytest.fixture
def prediction(channel: Any) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def model_service(channel: Any) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def refusal(method: Any, request: Any) -> tuple[str, str]:
    """(status name, details) of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=TIMEOUT_S)
    error: Any = caught.value
    return error.code().name, error.details()


def test_predict_answers_every_image_in_order(prediction: Any) -> None:
    # Zero bytes at the end: NumPy's bytes type would drop them.
    images = [b"one", b"three\0\0", b"", b"\xff\xfe four", b"one"]
    response = prediction.Predict(predict_request(images), timeout=TIMEOUT_S)
    captions = tf.make_ndarray(response.outputs[contract.CAPTION])
    assert [caption.decode() for caption in captions] == [tiny_caption(image) for image in images]
    assert set(response.outputs) == set(contract.OUTPUTS[contract.SERVING_DEFAULT])
    tokens = tf.make_ndarray(response.outputs[contract.TOKEN_IDS])
    assert_array_equal(tokens, [[len(i), len(i) + 1, 0, 0] for i in images])
    assert tokens.dtype == np.int32
    spec = response.model_spec
    assert (spec.name, spec.version.value) == ("tiny", 7)
    assert spec.signature_name == contract.SERVING_DEFAULT


def test_predict_runs_the_signature_and_outputs_asked_for(prediction: Any) -> None:
    request = predict_request([b"a", b"bc"], signature_name=contract.NBEST, version={"value": 7})
    request.output_filter.append(contract.CAPTIONS)
    response = prediction.Predict(request, timeout=TIMEOUT_S)
    assert list(response.outputs) == [contract.CAPTIONS]
    captions = tf.make_ndarray(response.outputs[contract.CAPTIONS])
    assert captions.shape == (2, HYPOTHESES)
    assert captions[1, 2].decode() == f"{tiny_caption(b'bc')} rank 2"


def test_predict_takes_strings_as_tensor_content(prediction: Any) -> None:
    """C++ clients may send a string tensor as lengths and bytes in `tensor_content`."""
    request = predict_request([])
    tensor = request.inputs[contract.IMAGE_BYTES]
    tensor.tensor_shape.dim[0].size = 2
    tensor.tensor_content = b"\x02\x03" + b"ab" + b"cde"
    response = prediction.Predict(request, timeout=TIMEOUT_S)
    captions = tf.make_ndarray(response.outputs[contract.CAPTION])
    assert [c.decode() for c in captions] == [tiny_caption(b"ab"), tiny_caption(b"cde")]


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ({"name": "other"}, "NOT_FOUND", "Servable not found for request: Latest(other)"),
        (
            {"version": {"value": 8}},
            "NOT_FOUND",
            "Servable not found for request: Specific(tiny, 8)",
        ),
        (
            {"version_label": "canary"},
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: canary",
        ),
        (
            {"signature_name": "classify"},
            "INVALID_ARGUMENT",
            'Serving signature key "classify" not found.',
        ),
        ({"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ],
)
def test_predict_refuses_what_it_does_not_serve(
    prediction: Any, spec: dict[str, Any], code: str, message: str
) -> None:
    assert refusal(prediction.Predict, predict_request([b"a"], **spec)) == (code, message)


def test_predict_refuses_wrong_tensors(prediction: Any) -> None:
    def answer(**tensors: Any) -> tuple[str, str]:
        request = predict_request([b"a"])
        request.inputs.clear()
        for name, tensor in tensors.items():
            request.inputs[name].CopyFrom(tensor)
        return refusal(prediction.Predict, request)

    strings = tf.make_tensor_proto([b"a"])
    assert answer(images=strings) == (
        "INVALID_ARGUMENT",
        "input tensor alias not found in signature: images. "
        "Inputs expected to be in the set {image_bytes}.",
    )
    assert answer() == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 0!=1 len({}) != len({image_bytes}). "
        "Sent extra: {}. Missing but required: {image_bytes}.",
    )
    assert answer(image_bytes=tf.make_tensor_proto([1.0])) == (
        "INVALID_ARGUMENT",
        "Expects image_bytes to be string [?] but float32 [1] is provided",
    )
    assert answer(image_bytes=tf.make_tensor_proto([[b"a"]])) == (
        "INVALID_ARGUMENT",
        "Expects image_bytes to be string [?] but string [1,1] is provided",
    )


@pytest.mark.parametrize(
    "edit",
    [
        # A shape that asks for a terabyte must not be believed.
        lambda tensor: setattr(tensor.tensor_shape.dim[0], "size", 10**12),
        lambda tensor: setattr(tensor.tensor_shape.dim[0], "size", -1),
        lambda tensor: setattr(tensor.tensor_shape.dim[0], "size", 0),
        lambda tensor: setattr(tensor.tensor_shape, "unknown_rank", True),
        lambda tensor: setattr(tensor, "dtype", 0),
        lambda tensor: setattr(tensor, "dtype", 9999),
        lambda tensor: setattr(tensor, "tensor_content", b"\xff\xff\xff\xff\x0f"),
    ],
)
def test_predict_survives_malformed_tensors(prediction: Any, edit: Any) -> None:
    request = predict_request([b"a"])
    edit(request.inputs[contract.IMAGE_BYTES])
    code, message = refusal(prediction.Predict, request)
    assert code == "INVALID_ARGUMENT"
    assert "image_bytes" in message or message.startswith("Task size 1000000000000 is larger")
    good = prediction.Predict(predict_request([b"a"]), timeout=TIMEOUT_S)
    assert tf.make_ndarray(good.outputs[contract.CAPTION])[0].decode() == tiny_caption(b"a")


def test_predict_refuses_unknown_and_repeated_outputs(prediction: Any) -> None:
    request = predict_request([b"a"])
    request.output_filter.extend(["nothing"])
    code, message = refusal(prediction.Predict, request)
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("output tensor alias not found in signature: nothing ")
    del request.output_filter[:]
    request.output_filter.extend([contract.CAPTION, contract.CAPTION])
    assert refusal(prediction.Predict, request)[1] == "duplicate output tensor alias: caption"


def test_predict_names_what_the_graph_refuses_on_one_line(prediction: Any) -> None:
    code, message = refusal(prediction.Predict, predict_request([b"a", b"bad"]))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("assertion failed: [cannot decode]")
    assert "\n" not in message
    assert "node" not in message


def test_messages_beyond_grpcs_default_of_4_mib_pass(tmp_path: Path) -> None:
    image = bytes(9 * 2**20)
    model_dir = save_tiny_model(tmp_path / "tiny")
    wide = BatchingParameters(max_batch_size=60_000, allowed_batch_sizes=())
    (tmp_path / BATCHING_FILE).write_text(wide.to_text())
    with (
        running_server(model_dir) as server,
        grpc.insecure_channel(
            server.address, options=[("grpc.max_receive_message_length", 64 * 2**20)]
        ) as channel,
    ):
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = prediction.Predict(predict_request([image]), timeout=TIMEOUT_S)
        (caption,) = tf.make_ndarray(response.outputs[contract.CAPTION])
        assert caption.decode() == tiny_caption(image)
        # TOKENS × CELLS × 4 bytes and more come back for each: 60,000 rows are over 4 MiB.
        request = predict_request([b"a"] * 60_000, signature_name=contract.EXPLAIN)
        response = prediction.Predict(request, timeout=TIMEOUT_S)
    assert response.ByteSize() > 5 * 2**20
    assert tf.make_ndarray(response.outputs[contract.WORDS]).shape == (60_000, TOKENS)


def test_a_request_of_more_images_than_a_batch_is_refused(prediction: Any) -> None:
    assert refusal(prediction.Predict, predict_request([b"a"] * 33)) == (
        "INVALID_ARGUMENT",
        "Task size 33 is larger than maximum input batch size 32",
    )


def test_many_clients_at_once_get_their_own_captions(prediction: Any) -> None:
    def ask(number: int) -> bool:
        image = str(number).encode() * (number % 7 + 1)
        response = prediction.Predict(predict_request([image]), timeout=TIMEOUT_S)
        caption = tf.make_ndarray(response.outputs[contract.CAPTION])[0].decode()
        return bool(caption == tiny_caption(image))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_metadata_is_the_saved_models_own(prediction: Any, model_dir: Path) -> None:
    _, expected = describe(find_version(model_dir))
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec={"name": "tiny"}, metadata_field=["signature_def"]
    )
    response = prediction.GetModelMetadata(request, timeout=TIMEOUT_S)
    assert (response.model_spec.name, response.model_spec.version.value) == ("tiny", 7)
    definitions = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(definitions)
    for name in contract.OUTPUTS:
        assert definitions.signature_def[name] == expected[name]
        assert definitions.signature_def[name].method_name == "tensorflow/serving/predict"


def test_metadata_refusals(prediction: Any) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": "tiny"})
    assert refusal(prediction.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field.append("weights")
    assert refusal(prediction.GetModelMetadata, request)[0] == "INVALID_ARGUMENT"
    request.metadata_field[0] = "signature_def"
    request.model_spec.name = "other"
    assert refusal(prediction.GetModelMetadata, request)[0] == "NOT_FOUND"
    request.ClearField("model_spec")
    assert refusal(prediction.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "Missing ModelSpec",
    )


def test_status_is_available_with_version(model_service: Any) -> None:
    request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "tiny"})
    (status,) = model_service.GetModelStatus(request, timeout=TIMEOUT_S).model_version_status
    assert status.version == 7
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert status.HasField("status")
    assert (status.status.error_code, status.status.error_message) == (0, "")
    request.model_spec.version.value = 8
    assert refusal(model_service.GetModelStatus, request) == (
        "NOT_FOUND",
        "Could not find version 8 of model tiny",
    )
    request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "other"})
    assert refusal(model_service.GetModelStatus, request) == (
        "NOT_FOUND",
        "Could not find any versions of model other",
    )


def test_highest_version_is_found_as_a_number(tmp_path: Path) -> None:
    for version in ("9", "10", "08", ".tmp-11", "latest", "12.partial"):
        (tmp_path / "name" / version).mkdir(parents=True)
    found = find_version(tmp_path / "name")
    assert (found.name, found.version, found.path.name) == ("name", 10, "10")
    (tmp_path / "name" / "9" / "saved_model.pb").touch()
    assert find_version(tmp_path / "name" / "9").version == 9


def test_unusable_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere: no such directory"):
        LoadedModel(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"no version in it; expected MODELS/NAME/VERSION"):
        LoadedModel(tmp_path)
    (tmp_path / "name" / "3").mkdir(parents=True)
    with pytest.raises(InvalidInput, match=r"saved_model.pb: no readable SavedModel"):
        LoadedModel(tmp_path / "name")
    (tmp_path / "name" / "3" / "saved_model.pb").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(InvalidInput, match=r"saved_model.pb: no readable SavedModel"):
        LoadedModel(tmp_path / "name")
    (tmp_path / "name" / "saved_model.pb").touch()
    with pytest.raises(InvalidInput, match=r"outside a version directory"):
        LoadedModel(tmp_path / "name")


def test_missing_variables_are_named(tmp_path: Path) -> None:
    model_dir = save_tiny_model(tmp_path / "tiny")
    for file in (model_dir / "1" / "variables").iterdir():
        file.unlink()
    with pytest.raises(InvalidInput, match=r"1: cannot be loaded \(.+\); export it again"):
        LoadedModel(model_dir)


def test_a_foreign_model_is_refused_with_every_difference(tmp_path: Path) -> None:
    with pytest.raises(ModelMismatch) as caught:
        LoadedModel(save_foreign_model(tmp_path / "foreign"))
    message = str(caught.value)
    assert message.startswith("model foreign version 1 is not a captionbeam model: ")
    for part in (
        "serving_default input image_bytes is missing",
        "serving_default input pixels is not known here",
        "serving_default output caption is float32 [1,3], expected string [N]",
        "serving_default output length is missing",
        "signature explain is missing (it has serving_default)",
    ):
        assert part in message


def test_a_taken_port_is_refused(model_dir: Path, server: Server) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(InvalidInput, match=rf"cannot listen on 127.0.0.1:{port} .*--port"):
        Server(model_dir, ServerSettings(port=port))
    with pytest.raises(InvalidInput, match=rf"cannot listen on 127.0.0.1:{port} .*--rest_port"):
        Server(model_dir, ServerSettings(rest_port=port))
    with pytest.raises(InvalidInput, match=r"--port 70000: expected 0"):
        ServerSettings(port=70000)


def test_stop_lets_a_call_under_way_finish(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    run = LoadedModel.run

    def slow(self: LoadedModel, *args: Any) -> Any:
        entered.set()
        assert release.wait(TIMEOUT_S)
        return run(self, *args)

    monkeypatch.setattr(LoadedModel, "run", slow)
    with running_server(model_dir) as server, grpc.insecure_channel(server.address) as channel:
        grpc_stop = server._grpc.stop

        def stop_then_release(grace_s: float) -> Any:
            stopped = grpc_stop(grace_s)
            # The server is stopping; without a grace the call would be cancelled by now.
            release.set()
            return stopped

        monkeypatch.setattr(server._grpc, "stop", stop_then_release)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        future = stub.Predict.future(predict_request([b"a"]), timeout=TIMEOUT_S)
        assert entered.wait(TIMEOUT_S)
        server.stop()
        outputs = future.result().outputs
    assert tf.make_ndarray(outputs[contract.CAPTION])[0].decode() == tiny_caption(b"a")
