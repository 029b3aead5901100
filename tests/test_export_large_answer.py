"""An answer of more than 4 MiB, which gRPC refuses unless it is told otherwise."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import captionbeam
from export.samples import sample_images
from model.encoder import EncoderSettings
from serving import contract
from serving.client import connect
from tests.export_fixtures import NAME, Exported, export

GRPC_RECEIVES = 4 * 2**20
# 32 images' weights: 32 · 256 words · 12 · 12 cells · 4 bytes are 4.5 MiB.
IMAGES, CELLS, WORDS = 32, 12, 256

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="exported")
def fixture_exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model with many words and cells."""
    settings = EncoderSettings("random:0", 32 * CELLS, CELLS)
    changes = {"max_length": WORDS, "beam_width": 1, "block_ngrams": 0}
    return export(tmp_path_factory.mktemp("large"), settings, changes)


def test_verify_has_sent_and_read_it(exported: Exported) -> None:
    assert exported.verified.session.answer_bytes > GRPC_RECEIVES


@pytest.fixture(scope="module", name="server")
def fixture_server(exported: Exported) -> Iterator[str]:
    name_dir = str(exported.version_dir.parent)
    command = [sys.executable, "-m", "captionbeam", "serve", "--model", name_dir]
    with subprocess.Popen(
        [*command, "--port", "0", "--rest_port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(captionbeam.__file__).parent,
    ) as process:
        assert process.stdout is not None
        ready = next(
            found
            for line in process.stdout
            if (found := re.search(r"127\.0\.0\.1:\d+", line)) is not None
        )
        yield ready[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def images() -> list[bytes]:
    pictures = sample_images()
    return [pictures[index % len(pictures)] for index in range(IMAGES)]


def test_our_client_receives_it(server: str) -> None:
    with connect(model=None, server=server, model_name=NAME, timeout_s=300) as client:
        explained = client.explain(images())
        captions = [result.caption for result in client.caption(images())]
    assert [result.caption for result in explained] == captions


def test_a_client_with_grpc_s_own_limit_does_not(server: str) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = NAME
    request.model_spec.signature_name = contract.EXPLAIN
    request.inputs[contract.IMAGE_BYTES].CopyFrom(tf.make_tensor_proto(images()))
    for limit in (None, 64 * 2**20):
        options = [] if limit is None else [("grpc.max_receive_message_length", limit)]
        with grpc.insecure_channel(server, options=options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            if limit is None:
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Predict(request, timeout=300)
                assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            else:
                answer = stub.Predict(request, timeout=300)
                assert answer.ByteSize() > GRPC_RECEIVES
                weights = tf.make_ndarray(answer.outputs[contract.ATTENTION])
                assert weights.shape == (IMAGES, WORDS, CELLS**2)
