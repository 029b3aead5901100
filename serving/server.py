"""A small local server with TensorFlow Serving's wire, for machines without its image.

gRPC: `tensorflow.serving.PredictionService` Predict and GetModelMetadata,
`tensorflow.serving.ModelService` GetModelStatus, `grpc.health.v1.Health`, reflection. REST beside
it, if asked for. New versions are taken up while it runs. Status codes and messages are TensorFlow
Serving's own, except that an unknown signature is INVALID_ARGUMENT (there FAILED_PRECONDITION).
"""

import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from model.errors import InvalidInput
from serving import batching_parameters, warmup
from serving.batching_parameters import BATCHING_FILE, BatchingParameters
from serving.grpc_api import GrpcApi
from serving.http_server import HttpServer
from serving.labels import MODELS_CONFIG, LabelFile
from serving.loaded_model import LoadedModel
from serving.monitoring import Monitor
from serving.published import ModelVersion, find_source
from serving.rest_api import RestApi
from serving.service import Service
from serving.transport import MAX_MESSAGE_BYTES
from serving.versions import Versions, Watcher

# Longer than a full queue takes on two cores.
STOP_GRACE_S = 30.0
# Status, metadata and health are answered even when every image that may wait is one request's.
_SPARE_CALLS = 64
_SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens.

    Attributes:
      name: what clients call the model; the directory's by default.
      host: address to listen on.
      port: of gRPC; 0 takes any free one.
      rest_port: of REST, likewise; None for no REST.
      certificate: PEM file of the certificate chain, for TLS on both ports.
      key: PEM file of its key.
      max_message_bytes: the largest request and answer.
    """

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    rest_port: int | None = None
    certificate: Path | None = None
    key: Path | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        """Checks ports, sizes, and that the certificate fits its key."""
        for port in (self.port, self.rest_port or 0):
            if not 0 <= port <= 65535:
                raise InvalidInput(f"port {port}: expected 0 (any free one) to 65535")
        if not 1 <= self.max_message_bytes < 2**31:
            raise InvalidInput(
                f"messages of {self.max_message_bytes} bytes: expected 1 to {2**31 - 1}"
            )
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput(
                "a certificate without its key, or a key alone; expected both --tls_certificate "
                "and --tls_key, or neither"
            )
        if self.certificate is not None:
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.certificate, self.key)
            except (OSError, ssl.SSLError) as error:
                raise InvalidInput(
                    f"{self.certificate}, {self.key}: {error}; expected PEM files of a certificate "
                    "and its key"
                ) from error


class Server:
    """A listening server over the versions of one model.

    Attributes:
      name: name under which clients ask for the model.
      address: HOST:PORT of gRPC.
      rest_address: HOST:PORT of REST, or None.
      versions: those that are loaded.
    """

    def __init__(
        self,
        model_dir: str | Path,
        settings: ServerSettings | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Binds the ports; `start` begins to answer.

        Args:
          model_dir: MODELS/NAME, whose highest version is served, now and later; or one
            MODELS/NAME/VERSION.
          settings: how it listens.
          log: takes a line about each change of versions; by default stderr.

        Raises:
          InvalidInput: there is no version, its batching file is wrong, or an address cannot be
            listened on.
        """
        settings = settings or ServerSettings()
        self._log = log or _print
        source = find_source(model_dir)
        models = source.name_dir.parent
        batching = _batching(models / BATCHING_FILE)
        self.name = settings.name or source.name_dir.name

        def load(found: ModelVersion) -> LoadedModel:
            return _warmed(LoadedModel(found.path, batching))

        labels = LabelFile(models / MODELS_CONFIG, source.name_dir.name, self._log)
        self.versions = Versions(source, self.name, load, labels, self._log)
        self._monitor = Monitor()
        service = Service(self.versions, batching.capacity, self._monitor)
        self._health = health.HealthServicer()
        self._watcher = Watcher(self.versions, self._tell_health)
        most = batching.capacity + _SPARE_CALLS
        self._grpc = self._grpc_server(GrpcApi(service), most, settings)
        self.address = _bind(self._grpc, settings)
        self._http = None
        self.rest_address = None
        if settings.rest_port is not None:
            app = RestApi(service, settings.max_message_bytes, most).app
            self._http = HttpServer(
                app, settings.host, settings.rest_port, settings.certificate, settings.key
            )
            self.rest_address = self._http.address

    @property
    def version(self) -> int | None:
        """The version that answers by default."""
        return self.versions.latest

    def start(self) -> None:
        """Begins to answer, loads the model, and returns when it is available.

        Raises:
          InvalidInput: no version can be loaded.
        """
        self._tell_health()
        self._grpc.start()
        if self._http is not None:
            self._http.start()
        self.versions.poll()
        if self.version is None:
            refused = [status for status in self.versions.status() if status.error]
            self.stop(0)
            raise InvalidInput(refused[0].error if refused else f"{self.name}: no version is left")
        self._tell_health()
        self._watcher.start()

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuses new calls, lets those under way finish for `grace_s`, then returns."""
        self._health.enter_graceful_shutdown()
        self._watcher.stop()
        stopped = self._grpc.stop(grace_s)
        if self._http is not None:
            self._http.stop(grace_s)
        stopped.wait()
        self.versions.close()

    def _grpc_server(self, api: GrpcApi, max_calls: int, settings: ServerSettings) -> grpc.Server:
        server = grpc.server(
            ThreadPoolExecutor(max_calls, thread_name_prefix="grpc"),
            maximum_concurrent_rpcs=max_calls,
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Otherwise a second server would share the port and take half of the requests.
                ("grpc.so_reuseport", 0),
            ),
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(api, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(api, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _tell_health(self) -> None:
        version = self.version
        self._monitor.serves(self.name, version)
        states = health_pb2.HealthCheckResponse
        state = states.NOT_SERVING if version is None else states.SERVING
        for service in ("", *_SERVICES):
            self._health.set(service, state)


def _batching(file: Path) -> BatchingParameters:
    """The settings that lie beside the model, for TensorFlow Serving too; else the defaults."""
    return batching_parameters.load(file) if file.exists() else BatchingParameters()


def _warmed(model: LoadedModel) -> LoadedModel:
    try:
        warmup.warm_up(model)
    except BaseException:
        model.close()
        raise
    return model


def _bind(server: grpc.Server, settings: ServerSettings) -> str:
    """Listens; returns HOST:PORT."""
    # An IPv6 address needs brackets before a port.
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    place = f"{host}:{settings.port}"
    try:
        if settings.certificate is None or settings.key is None:
            bound = server.add_insecure_port(place)
        else:
            pair = (settings.key.read_bytes(), settings.certificate.read_bytes())
            bound = server.add_secure_port(place, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise InvalidInput(
            f"cannot listen on {place} (taken, or no address of this machine); "
            "choose another --port, 0 for any free one"
        ) from error
    return f"{host}:{bound}"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
