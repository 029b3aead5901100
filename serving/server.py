"""A small local server with TensorFlow Serving's wire, for machines without its image.

gRPC: `tensorflow.serving.PredictionService` Predict and GetModelMetadata,
`tensorflow.serving.ModelService` GetModelStatus, `grpc.health.v1.Health`, reflection. REST beside
it, if asked for. New versions are taken up while it runs. Status codes and messages are TensorFlow
Serving's own, except that an unknown signature is INVALID_ARGUMENT (there FAILED_PRECONDITION).
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from serving.addresses import Address
from serving.batching_parameters import BATCHING_FILE, BatchingParameters
from serving.grpc_api import GrpcApi
from serving.http_server import HttpServer
from serving.labels import MODELS_CONFIG, LabelFile
from serving.loaded_model import LoadedModel
from serving.monitoring import Monitor
from serving.published import ModelVersion, find_source
from serving.rest_api import RestApi
from serving.server_settings import ServerSettings
from serving.service import Service
from serving.versions import Versions
from serving.watcher import Watcher

# Longer than a full queue takes on two cores.
STOP_GRACE_S = 30.0
# Status, metadata and health are answered even when every image that may wait is one request's.
_SPARE_CALLS = 64
# An answer is on its way for so long.
_LAST_S = 0.2
# One a client process, for as long as it is connected.
_MAX_WATCHES = 1000
_SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)


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
            return _warmed(LoadedModel(found, batching))

        labels = LabelFile(models / MODELS_CONFIG, source.name_dir.name, self._log)
        self.versions = Versions(source, self.name, load, labels, self._log)
        self._monitor = Monitor()
        service = Service(self.versions, batching, self._monitor)
        # Its other way of answering Watch holds a lock while it sends, and deadlocks the server
        # with a client that hangs up at that moment (grpcio-health-checking 1.81). The library
        # keeps the pool on its class, so it is never shut down.
        self._health = health.HealthServicer(
            experimental_non_blocking=False,
            experimental_thread_pool=ThreadPoolExecutor(_MAX_WATCHES, "health"),
        )
        self._told: int | None = None
        self._watcher = Watcher(self.versions, self._tell_health, self._log)
        most = batching.capacity + _SPARE_CALLS
        self._api = GrpcApi(service)
        self._grpc = self._grpc_server(self._api, most, settings)
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
        try:
            if self._http is not None:
                self._http.start()
            self.versions.poll()
            if self.version is None:
                refused = [status.error for status in self.versions.status() if status.error]
                raise InvalidInput(refused[0] if refused else f"{self.name}: no version is left")
        except BaseException:
            self.stop(0)
            raise
        self._tell_health()
        self._watcher.start()

    def stop(self, grace_s: float = STOP_GRACE_S) -> bool:
        """Refuses new calls, lets those under way finish for `grace_s`, then returns.

        Returns:
          Whether all of them have, and every version is closed.
        """
        end_s = time.monotonic() + grace_s
        self._health.enter_graceful_shutdown()
        # A version that is being loaded keeps nobody waiting.
        self._watcher.ask_to_stop()
        stopped = self._grpc.stop(grace_s)
        if self._http is not None:
            self._http.stop(grace_s)
        # Once more, for a call that had come and not begun.
        for _ in range(2):
            self._api.wait_until_idle(max(0.0, end_s - time.monotonic()))
            time.sleep(min(_LAST_S, grace_s))
        # A watch of the health never ends by itself.
        self._grpc.stop(0)
        stopped.wait()
        return self.versions.close(max(0.1, end_s - time.monotonic()))

    def _grpc_server(self, api: GrpcApi, max_calls: int, settings: ServerSettings) -> grpc.Server:
        server = grpc.server(
            ThreadPoolExecutor(max_calls, thread_name_prefix="grpc"),
            maximum_concurrent_rpcs=max_calls + _MAX_WATCHES,
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
        # Each time it is set, every watcher gets a message.
        if state != self._told:
            for service in ("", *_SERVICES):
                self._health.set(service, state)
            self._told = state


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
    place = str(Address(settings.host, settings.port))
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
    return str(Address(settings.host, bound))


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
