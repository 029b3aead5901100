"""Servers that answer what a test tells them to: states, versions, health, TLS, size.

They need no SavedModel. A caption is "TAG: the image's bytes", so that an answer shows which
replica gave it and which image it belongs to.
"""

import contextlib
import datetime
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import contract
from serving.transport import SIGNATURE_DEF

State = get_model_status_pb2.ModelVersionStatus.State
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Of the dimensions after the batch.
_SIZES = {"T": 2, "P": 3, "K": 2, "G": 2, "2": 2}


@dataclass
class Certificate:
    """A self-signed certificate: key and certificate as PEM, and the certificate's file."""

    key: bytes
    certificate: bytes
    file: Path


def make_certificate(file: Path, names: list[str], addresses: list[str]) -> Certificate:
    """Writes the certificate's file; the key stays in memory."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "captionbeam test")])
    subjects = [*map(x509.DNSName, names)]
    places = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2120, 1, 1))
        .add_extension(x509.SubjectAlternativeName([*subjects, *places]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    pem = certificate.public_bytes(encoding)
    file.write_bytes(pem)
    return Certificate(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain), pem, file
    )


class Health(health_pb2_grpc.HealthServicer):
    """Says of the server what it is told to say.

    The library's own HealthServicer holds a lock while it sends the first answer to a watch: with
    a client that hangs up at that moment, the whole server stands still for ever.
    """

    def __init__(self, status: Any) -> None:
        self._status = status
        self._changed = threading.Condition()

    def be(self, status: Any) -> None:
        """Changes what is said; everybody who watches hears of it."""
        with self._changed:
            self._status = status
            self._changed.notify_all()

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802, ARG002
        """What is said now, and whenever it changes; takes a thread until the client leaves."""
        context.add_callback(lambda: self.be(self._status))
        told = None
        while context.is_active():
            with self._changed:
                while self._status == told and context.is_active():
                    self._changed.wait()
                told = self._status
            yield health_pb2.HealthCheckResponse(status=told)


class Proxy:
    """Passes bytes between a client and a replica until it is killed, as a machine dies.

    Attributes:
      address: HOST:PORT to connect to.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def kill(self) -> None:
        """Ends every connection without a word, and takes no other."""
        for one in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)


class Replica(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """One server; what it says may be changed while it runs.

    Attributes:
      tag: begins each of its captions.
      version: that it answers with; None leaves it out.
      states: version → state, as GetModelStatus tells; without AVAILABLE nothing else works.
      hidden: no model is found although it may be AVAILABLE.
      label: the only version label that it knows.
      labels: those that were asked for.
      padding: bytes added to each caption.
      captions_are_sizes: a caption tells how many bytes the image has, not which.
      before: called with the images of each Predict, before it answers.
      images: how many images it captioned.
      asked: how many GetModelMetadata it answered or refused.
      address: HOST:PORT.
    """

    def __init__(
        self,
        tag: str,
        *,
        version: int | None = 1,
        healthy: bool | None = True,
        tls: Certificate | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        options: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.tag, self.version = tag, version
        self.states = {version or 1: State.AVAILABLE}
        self.hidden = False
        self.label = "stable"
        self.labels: list[str] = []
        self.padding = 0
        self.captions_are_sizes = False
        self.before: Callable[[list[bytes]], object] = len
        self.images = self.asked = 0
        self._counting = threading.Lock()
        self._health = Health(SERVING if healthy else NOT_SERVING)
        self._server = grpc.server(
            ThreadPoolExecutor(32), options=(("grpc.so_reuseport", 0), *options)
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        if healthy is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if tls is None:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        else:
            pair = (tls.key, tls.certificate)
            credentials = grpc.ssl_server_credentials([pair])
            bound = self._server.add_secure_port(f"{host}:{port}", credentials)
        self.port = bound
        self.address = f"{host}:{bound}"

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Hangs up on every call."""
        self._server.stop(None).wait()

    def be(self, status: Any) -> None:
        """Changes what the health service says."""
        self._health.be(status)

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(request, context)
        images = list(request.inputs[contract.IMAGE_BYTES].string_val)
        self.before(images)
        with self._counting:
            self.images += len(images)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        if self.version is not None:
            response.model_spec.version.value = self.version
        for name, value in self._outputs(request.model_spec.signature_name, images).items():
            response.outputs[name].CopyFrom(value)
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._counting:
            self.asked += 1
        self._check(request, context)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        for name, outputs in contract.OUTPUTS.items():
            definition = definitions.signature_def[name]
            _declare(definition.inputs, contract.INPUTS)
            _declare(definition.outputs, outputs)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = self.version or 1
        response.metadata[SIGNATURE_DEF].Pack(definitions)
        return response

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_spec.name != contract.DEFAULT_MODEL_NAME:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state in self.states.items():
            response.model_version_status.add(version=version, state=state)
        return response

    def _check(self, request: Any, context: Any) -> None:
        spec = request.model_spec
        self.labels.append(spec.version_label)
        if spec.version_label not in ("", self.label):
            message = f"Unrecognized servable version label: {spec.version_label}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        available = State.AVAILABLE in self.states.values() and not self.hidden
        if spec.name != contract.DEFAULT_MODEL_NAME or not available:
            message = f"Servable not found for request: Latest({spec.name})"
            context.abort(grpc.StatusCode.NOT_FOUND, message)

    def _outputs(self, signature: str, images: list[bytes]) -> dict[str, Any]:
        texts = [str(len(x)).encode() if self.captions_are_sizes else x for x in images]
        captions = [caption_of(self.tag, text).encode() + b"." * self.padding for text in texts]
        outputs = {}
        for name, tensor in contract.OUTPUTS[signature].items():
            shape = [len(images), *(_SIZES[dim] for dim in tensor.dims[1:])]
            value: Any = tf.zeros(shape, tensor.dtype)
            if name == contract.CAPTION:
                value = captions
            outputs[name] = tf.make_tensor_proto(value)
        return outputs


def _declare(given: Any, tensors: Mapping[str, contract.Tensor]) -> None:
    """Fills a map of TensorInfo messages with the contract's tensors."""
    for name, tensor in tensors.items():
        given[name].dtype = tf.as_dtype(tensor.dtype).as_datatype_enum
        shape = tf.TensorShape([None] * len(tensor.dims))
        given[name].tensor_shape.CopyFrom(shape.as_proto())


def caption_of(tag: str, image: bytes) -> str:
    """What the replica of that tag says of an image."""
    return f"{tag}: {image.decode()}"


@contextlib.contextmanager
def running(*replicas: Replica) -> Iterator[str]:
    """Starts replicas; yields their addresses as --server takes them."""
    for replica in replicas:
        replica.start()
    try:
        yield ",".join(replica.address for replica in replicas)
    finally:
        for replica in replicas:
            replica.stop()
