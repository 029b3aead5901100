"""The local server in operation: health, TLS, overload, deadlines, the change of versions."""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tensorflow_serving.apis import prediction_service_pb2_grpc

from model.errors import InvalidInput
from serving import contract
from serving.batching_parameters import BATCHING_FILE, BatchingParameters
from serving.labels import MODELS_CONFIG
from serving.layout import WARMUP_FILE
from serving.loaded_model import LoadedModel
from serving.server import Server
from serving.server_settings import ServerSettings
from serving.versions import State, Wanted
from tests.replica_fixtures import make_certificate
from tests.serving_fixtures import (
    CELLS,
    HYPOTHESES,
    TOKENS,
    predict_request,
    running_server,
    save_tiny_model,
    tiny_caption,
)

TIMEOUT_S = 60


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


@contextlib.contextmanager
def predicting(server: Server, credentials: Any = None) -> Iterator[Any]:
    if credentials is None:
        channel = grpc.insecure_channel(server.address)
    else:
        channel = grpc.secure_channel(server.address, credentials)
    with channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(image: bytes, **spec: Any) -> Any:
    return predict_request([image], **spec)


def caption(response: Any) -> str:
    text: str = tf.make_ndarray(response.outputs[contract.CAPTION])[0].decode()
    return text


def code(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    name: str = error.code().name
    return name


def code_or_ok(stub: Any, image: bytes) -> str:
    """Status of a call that is given up at once."""
    try:
        stub.Predict(request(image), timeout=0.05)
    except grpc.RpcError as error:
        failed: Any = error
        name: str = failed.code().name
        return name
    return "OK"


def health(server: Server, service: str = "") -> str:
    with grpc.insecure_channel(server.address) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=TIMEOUT_S)
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


def test_health_is_serving_only_while_a_version_is_available(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(model_dir, ServerSettings(), log=[].append)  # type: ignore[arg-type]
    poll, seen = server.versions.poll, list[str]()

    def look_first() -> None:
        seen.append(health(server))
        with predicting(server) as stub:
            seen.append(code(lambda: stub.Predict(request(b"a"), timeout=TIMEOUT_S)))
        poll()

    monkeypatch.setattr(server.versions, "poll", look_first)
    server.start()
    try:
        assert seen == ["NOT_SERVING", "NOT_FOUND"]
        for service in ("", "tensorflow.serving.PredictionService"):
            assert health(server, service) == "SERVING"
    finally:
        server.stop()


def test_while_a_call_ends_the_draining_server_takes_no_other(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(model_dir) as server, predicting(server) as stub:
        watch = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address)).Watch(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        gate = Gate(monkeypatch)
        under_way = stub.Predict.future(request(b"a"), timeout=TIMEOUT_S)
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        with ThreadPoolExecutor(1) as pool:
            # The watch would last as long.
            stopped = pool.submit(server.stop, 100 * TIMEOUT_S)
            # That it stops is seen by those who watch its health, and by its refusals.
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            while not stopped.done():
                if code_or_ok(stub, b"b") == "UNAVAILABLE":
                    break
            assert not stopped.done()
            gate.opened.set()
            assert stopped.result(TIMEOUT_S)
        assert caption(under_way.result()) == tiny_caption(b"a")


def test_a_call_that_does_not_end_in_time_is_said_to(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(model_dir) as server, predicting(server) as stub:
        gate = Gate(monkeypatch)
        under_way = stub.Predict.future(request(b"a"), timeout=TIMEOUT_S)
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        assert not server.stop(grace_s=0.0)
        assert under_way.code().name in {"CANCELLED", "UNAVAILABLE"}
        gate.opened.set()


def test_a_version_that_is_being_loaded_keeps_no_server_from_stopping(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(model_dir) as server:
        loading, opened = threading.Event(), threading.Event()
        load = server.versions._load

        def held(found: Any) -> Any:
            loading.set()
            assert opened.wait(TIMEOUT_S)
            return load(found)

        monkeypatch.setattr(server.versions, "_load", held)
        publish(model_dir, 2)
        assert loading.wait(TIMEOUT_S)
        assert server.stop()
        opened.set()


def test_whoever_watches_its_health_hears_of_changes_alone(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(model_dir) as server:
        told: list[Any] = []
        monkeypatch.setattr(server._health, "set", lambda *state: told.append(state))
        for _ in range(3):
            server._tell_health()
        assert told == []


def test_clients_that_watch_its_health_and_hang_up_do_not_stop_it(model_dir: Path) -> None:
    # One connection each, as of clients in processes of their own.
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with running_server(model_dir) as server, predicting(server) as stub:

        def come_and_go(count: int) -> None:
            for _ in range(count):
                with grpc.insecure_channel(server.address, alone) as channel:
                    asked = health_pb2.HealthCheckRequest()
                    next(health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=TIMEOUT_S))
                with grpc.insecure_channel(server.address, alone) as channel:
                    health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=TIMEOUT_S)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(come_and_go, [50] * 4))
        assert caption(stub.Predict(request(b"a"), timeout=TIMEOUT_S)) == tiny_caption(b"a")
        assert health(server) == "SERVING"


def test_reflection_lists_the_services(model_dir: Path) -> None:
    with running_server(model_dir) as server, grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) >= {
            "tensorflow.serving.PredictionService",
            "tensorflow.serving.ModelService",
            "grpc.health.v1.Health",
        }
        file = database.FindFileContainingSymbol("tensorflow.serving.PredictionService")
        assert "Predict" in [method.name for method in file.service[0].method]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    made = make_certificate(tmp_path / "server.pem", ["localhost"], ["127.0.0.1"])
    key = tmp_path / "server.key"
    key.write_bytes(made.key)
    return made.file, key


def test_tls_on_both_ports(model_dir: Path, certificate: tuple[Path, Path]) -> None:
    pem, key = certificate
    with running_server(model_dir, rest_port=0, certificate=pem, key=key) as server:
        credentials = grpc.ssl_channel_credentials(pem.read_bytes())
        with predicting(server, credentials) as stub:
            assert caption(stub.Predict(request(b"a"), timeout=TIMEOUT_S)) == tiny_caption(b"a")
        with predicting(server) as stub:
            assert code(lambda: stub.Predict(request(b"a"), timeout=TIMEOUT_S)) == "UNAVAILABLE"
        url = f"https://{server.rest_address}/v1/models/tiny"
        status = requests.get(url, verify=str(pem), timeout=TIMEOUT_S).json()
        assert status["model_version_status"][0]["state"] == "AVAILABLE"


def test_a_certificate_needs_its_key(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    pem, key = certificate
    with pytest.raises(InvalidInput, match="expected both --tls_certificate and --tls_key"):
        ServerSettings(certificate=pem)
    with pytest.raises(InvalidInput, match="expected PEM files of a certificate and its key"):
        ServerSettings(certificate=key, key=pem)
    with pytest.raises(InvalidInput, match="nowhere"):
        ServerSettings(certificate=tmp_path / "nowhere", key=key)


class Gate:
    """Holds every computation back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        run = LoadedModel.run

        def held(model: LoadedModel, *args: Any) -> Any:
            self.entered.release()
            assert self.opened.wait(TIMEOUT_S)
            return run(model, *args)

        monkeypatch.setattr(LoadedModel, "run", held)


def test_beyond_the_queue_requests_are_refused_at_once(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two batches of one wait, one is computed.
    small = BatchingParameters(1, 0, 2, 1, ())
    (model_dir.parent / BATCHING_FILE).write_text(small.to_text())
    with running_server(model_dir, rest_port=0) as server, predicting(server) as stub:
        gate = Gate(monkeypatch)
        images = [bytes(1 + number) for number in range(3)]
        accepted = [stub.Predict.future(request(image), timeout=TIMEOUT_S) for image in images]
        for _ in images:
            assert gate.entered.acquire(timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request(b"late"), timeout=TIMEOUT_S)
        refused: Any = caught.value
        assert refused.code().name == "RESOURCE_EXHAUSTED"
        assert refused.details().startswith("3 images wait or are computed, at most 3 may")
        url = f"http://{server.rest_address}/v1/models/tiny:predict"
        answer = requests.post(url, json={"instances": ["late"]}, timeout=TIMEOUT_S)
        assert answer.status_code == 429
        # Who asks for the state of things is answered.
        assert health(server) == "SERVING"
        gate.opened.set()
        assert [caption(call.result()) for call in accepted] == list(map(tiny_caption, images))
        assert caption(stub.Predict(request(b"late"), timeout=TIMEOUT_S)) == tiny_caption(b"late")


def test_a_call_hands_its_deadline_to_the_batch(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[float] = []
    run = LoadedModel.run

    def noted(model: LoadedModel, *args: Any) -> Any:
        handed.append(args[2])
        return run(model, *args)

    monkeypatch.setattr(LoadedModel, "run", noted)
    with running_server(model_dir) as server, predicting(server) as stub:
        stub.Predict(request(b"a"))
        stub.Predict(request(b"a"), timeout=TIMEOUT_S)
    unlimited, limited = handed
    # The protocol rounds a little.
    assert time.time() < limited < time.time() + 2 * TIMEOUT_S < unlimited


def test_too_many_images_are_refused_for_what_they_are_though_others_wait(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = BatchingParameters(2, 0, 1, 1, ())
    (model_dir.parent / BATCHING_FILE).write_text(small.to_text())
    with running_server(model_dir) as server, predicting(server) as stub:
        gate = Gate(monkeypatch)
        under_way = stub.Predict.future(request(b"a"), timeout=TIMEOUT_S)
        assert gate.entered.acquire(timeout=TIMEOUT_S)
        # It declares many, and would be decoded into as many.
        many = request(b"a")
        many.inputs[contract.IMAGE_BYTES].tensor_shape.dim[0].size = 10**6
        assert code(lambda: stub.Predict(many, timeout=TIMEOUT_S)) == "INVALID_ARGUMENT"
        gate.opened.set()
        assert caption(under_way.result()) == tiny_caption(b"a")


@pytest.mark.parametrize("signature", list(contract.OUTPUTS))
def test_no_images_have_no_rows(model_dir: Path, signature: str) -> None:
    none = request(b"", signature_name=signature)
    none.inputs[contract.IMAGE_BYTES].CopyFrom(tf.make_tensor_proto([], dtype=tf.string, shape=[0]))
    with running_server(model_dir) as server, predicting(server) as stub:
        outputs = stub.Predict(none, timeout=TIMEOUT_S).outputs
    sizes = {"N": 0, "T": TOKENS, "P": CELLS, "K": HYPOTHESES, "G": 3, "2": 2}
    for name, tensor in contract.OUTPUTS[signature].items():
        assert tf.make_ndarray(outputs[name]).shape == tuple(sizes[dim] for dim in tensor.dims)


def publish(model_dir: Path, version: int) -> None:
    """Makes a version that says its number in every caption, and renames it to its place."""
    new = save_tiny_model(model_dir.parent / f"new-{version}", version, f" of {version}")
    (new / str(version)).rename(model_dir / str(version))


@pytest.mark.parametrize("changes", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_new_versions_are_taken_up_under_load_without_a_failed_request(
    tmp_path: Path, changes: int
) -> None:
    model_dir = save_tiny_model(tmp_path / "tiny", tag=" of 1")
    with running_server(model_dir) as server, predicting(server) as stub:
        finished = threading.Event()

        answered: list[list[int]] = [[] for _ in range(4)]

        def ask(number: int) -> None:
            versions, image = answered[number], bytes(1 + number)
            while not finished.is_set():
                response = stub.Predict(request(image), timeout=TIMEOUT_S)
                version = response.model_spec.version.value
                assert caption(response) == f"{tiny_caption(image)} of {version}"
                versions.append(version)

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, number) for number in range(4)]
            try:
                for version in range(2, 2 + changes):
                    publish(model_dir, version)
                    for _ in range(10 * TIMEOUT_S):
                        if [s.state for s in server.versions.status(version - 1)] == [State.END]:
                            break
                        finished.wait(0.1)
                # Everyone has asked again since.
                while any(versions[-1] != 1 + changes for versions in answered):
                    assert not any(asked.done() for asked in asking)
            finally:
                finished.set()
            for asked, versions in zip(asking, answered, strict=True):
                asked.result()
                assert versions[0] == 1
                assert versions == sorted(versions)


def test_a_broken_version_does_not_disturb_the_one_that_serves(model_dir: Path) -> None:
    with running_server(model_dir) as server, predicting(server) as stub:
        shutil.copytree(model_dir / "1", model_dir / "2")
        (model_dir / "2" / "variables" / "variables.index").write_bytes(b"broken")
        shutil.copytree(model_dir / "1", model_dir / "3")
        warm_up = model_dir / "3" / WARMUP_FILE
        warm_up.parent.mkdir()
        with tf.io.TFRecordWriter(str(warm_up)) as writer:
            writer.write(b"no request")
        server.versions.poll()
        statuses = {status.version: status for status in server.versions.status()}
        assert [statuses[v].state for v in (1, 2, 3)] == [State.AVAILABLE, State.END, State.END]
        assert "2: cannot be loaded" in statuses[2].error
        assert "warm-up request 1 fails" in statuses[3].error
        response = stub.Predict(request(b"a"), timeout=TIMEOUT_S)
        assert response.model_spec.version.value == 1


def test_labels_of_models_config_choose_versions(model_dir: Path) -> None:
    save_tiny_model(model_dir, version=2)
    (model_dir.parent / MODELS_CONFIG).write_text(
        'model_config_list { config { name: "tiny" version_labels { key: "stable" value: 1 } } }'
    )
    with running_server(model_dir, rest_port=0) as server, predicting(server) as stub:
        answers = [
            stub.Predict(request(b"a", **spec), timeout=TIMEOUT_S).model_spec.version.value
            for spec in ({}, {"version_label": "stable"}, {"version": {"value": 2}})
        ]
        assert answers == [2, 1, 2]
        url = f"http://{server.rest_address}/v1/models/tiny/labels/stable"
        status = requests.get(url, timeout=TIMEOUT_S).json()
        assert [found["version"] for found in status["model_version_status"]] == ["1"]
        assert requests.post(f"{url}:predict", json={"instances": ["a"]}, timeout=TIMEOUT_S).ok


def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    model_dir = save_tiny_model(tmp_path / "tiny")
    (model_dir / "1" / "variables" / "variables.index").write_bytes(b"broken")
    server = Server(model_dir, log=[].append)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"1: cannot be loaded"):
        server.start()


def test_the_warm_up_is_replayed_before_a_version_answers(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up = model_dir / "1" / WARMUP_FILE
    warm_up.parent.mkdir()
    from tensorflow_serving.apis import prediction_log_pb2

    with tf.io.TFRecordWriter(str(warm_up)) as writer:
        for number in range(3):
            log = prediction_log_pb2.PredictLog(request=request(bytes(number)))
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())
    ran: list[bytes] = []
    run = LoadedModel.run

    def noted(model: LoadedModel, signature: str, inputs: Any, *args: Any) -> Any:
        ran.extend(inputs[contract.IMAGE_BYTES])
        return run(model, signature, inputs, *args)

    monkeypatch.setattr(LoadedModel, "run", noted)
    with running_server(model_dir) as server:
        assert ran == [b"", b"\0", b"\0\0"]
        with server.versions.using(Wanted()) as model:
            assert model.metadata.version == 1
