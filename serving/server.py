"""A small local server with TensorFlow Serving's wire, for machines without its image.

`tensorflow.serving.PredictionService` Predict and GetModelMetadata, and
`tensorflow.serving.ModelService` GetModelStatus, over one version of one model. Status
codes and messages are TensorFlow Serving's own, except that an unknown signature is
INVALID_ARGUMENT (there FAILED_PRECONDITION).
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from model.errors import InvalidInput
from serving import contract
from serving.errors import INVALID_ARGUMENT, NOT_FOUND, CallFailed
from serving.loaded_model import LoadedModel
from serving.metadata import TensorSpec
from serving.transport import MAX_MESSAGE_BYTES, SIGNATURE_DEF

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Otherwise a second server would share the port and take half of the first one's requests.
    ("grpc.so_reuseport", 0),
)
# TensorFlow spreads one call over all cores; a few more calls hide parsing and copying.
_MIN_THREADS = 4
# Longer than a batch of 32 takes on two cores.
STOP_GRACE_S = 30.0


class Server:
    """A listening server over a loaded model.

    Attributes:
      name: name under which clients ask for the model.
      version: the version served.
      address: HOST:PORT that it listens on.
    """

    def __init__(
        self, model: LoadedModel, *, name: str | None = None, host: str, port: int
    ) -> None:
        """Binds the port; `start` begins to answer.

        Args:
          model: what to serve.
          name: the model's name; the directory's by default.
          host: address to listen on.
          port: 0 takes any free one.

        Raises:
          InvalidInput: the address cannot be listened on.
        """
        self.name = name or model.metadata.name
        self.version = model.metadata.version
        if not 0 <= port <= 65535:
            raise InvalidInput(f"port {port}: expected 0 (any free one) to 65535")
        threads = max(_MIN_THREADS, os.cpu_count() or 1)
        self._server = grpc.server(ThreadPoolExecutor(threads), options=_OPTIONS)
        service = _Service(model, self.name)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, self._server)
        # An IPv6 address needs brackets before a port.
        place = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{place}:{port}")
        except RuntimeError as error:
            raise InvalidInput(
                f"cannot listen on {place}:{port} (taken, or no address of this machine); "
                "choose another --port, 0 for any free one"
            ) from error
        self.address = f"{place}:{bound}"

    def start(self) -> None:
        """Begins to answer; returns at once."""
        self._server.start()

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuses new calls, lets those under way finish for `grace_s`, then returns."""
        self._server.stop(grace_s).wait()


class _Service(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """The RPCs. Method names are the protocol's."""

    def __init__(self, model: LoadedModel, name: str) -> None:
        self._model = model
        self._name = name

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Runs a signature over the tensors of the request."""
        return _answer(context, self._predict, request)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The model's signatures."""
        return _answer(context, self._metadata, request)

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The state of the version served."""
        return _answer(context, self._status, request)

    def _predict(self, request: Any) -> Any:
        self._check_spec(request)
        signature = request.model_spec.signature_name or contract.SERVING_DEFAULT
        outputs = self._model.signature(signature).outputs
        wanted = list(request.output_filter) or list(outputs)
        for position, name in enumerate(wanted):
            if name not in outputs:
                known = ",".join(sorted(outputs))
                raise CallFailed(
                    INVALID_ARGUMENT,
                    f"output tensor alias not found in signature: {name} "
                    f"Outputs expected to be in the set {{{known}}}.",
                )
            if name in wanted[:position]:
                raise CallFailed(INVALID_ARGUMENT, f"duplicate output tensor alias: {name}")
        # Before decoding: a wrong type or rank may declare more elements than memory holds.
        specs = {name: _spec(name, tensor) for name, tensor in request.inputs.items()}
        self._model.verify(signature, specs)
        found = self._model.predict(signature, _decode(request.inputs))
        response = predict_pb2.PredictResponse()
        self._fill_spec(response.model_spec)
        response.model_spec.signature_name = signature
        for name in wanted:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(found[name]))
        return response

    def _metadata(self, request: Any) -> Any:
        if not request.metadata_field:
            raise CallFailed(
                INVALID_ARGUMENT,
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise CallFailed(INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        self._check_spec(request)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in self._model.signature_defs.items():
            definitions.signature_def[name].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        self._fill_spec(response.model_spec)
        response.metadata[SIGNATURE_DEF].Pack(definitions)
        return response

    def _status(self, request: Any) -> Any:
        spec = request.model_spec
        wanted = f"version {spec.version.value}" if spec.HasField("version") else "any versions"
        self._check_spec(request, not_found=f"Could not find {wanted} of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        status = response.model_version_status.add()
        status.version = self._model.metadata.version
        status.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        # An empty status is OK; set, so that clients that look for the field find it.
        status.status.SetInParent()
        return response

    def _fill_spec(self, spec: Any) -> None:
        spec.name = self._name
        spec.version.value = self._model.metadata.version

    def _check_spec(self, request: Any, not_found: str | None = None) -> None:
        """Raises CallFailed unless the request asks for this model, in this version."""
        spec = request.model_spec
        if not request.HasField("model_spec"):
            raise CallFailed(INVALID_ARGUMENT, "Missing ModelSpec")
        if not spec.name:
            raise CallFailed(INVALID_ARGUMENT, "ModelSpec has no name specified.")
        if spec.WhichOneof("version_choice") == "version_label":
            raise CallFailed(
                INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}"
            )
        asked, version = f"Latest({spec.name})", self._model.metadata.version
        if spec.HasField("version"):
            version = spec.version.value
            asked = f"Specific({spec.name}, {version})"
        if (spec.name, version) != (self._name, self._model.metadata.version):
            raise CallFailed(NOT_FOUND, not_found or f"Servable not found for request: {asked}")


def _answer(context: Any, answer: Callable[[Any], Any], request: Any) -> Any:
    try:
        return answer(request)
    except CallFailed as error:
        _abort(context, error)


def _abort(context: Any, error: CallFailed) -> NoReturn:
    context.abort(grpc.StatusCode[error.code], error.message)
    raise AssertionError("abort raises")


def _spec(name: str, tensor: Any) -> TensorSpec:
    """Type and shape of a tensor in a request, as it declares them."""
    sizes = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise CallFailed(INVALID_ARGUMENT, f"tensor parsing error: {name}: no concrete shape")
    try:
        return TensorSpec(tf.as_dtype(tensor.dtype).name, sizes)
    except TypeError as error:
        raise CallFailed(
            INVALID_ARGUMENT, f"tensor parsing error: {name}: unknown type {tensor.dtype}"
        ) from error


def _decode(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Verified string tensors as object arrays of bytes."""
    return {name: _decode_strings(name, tensor) for name, tensor in tensors.items()}


def _decode_strings(name: str, tensor: Any) -> np.ndarray:
    count = int(np.prod([dim.size for dim in tensor.tensor_shape.dim], dtype=object))
    # TensorFlow repeats the last value to fill a shape; a few bytes could claim any size.
    held = len(tensor.tensor_content) if tensor.tensor_content else len(tensor.string_val)
    if count > held or (not tensor.tensor_content and count != held):
        raise CallFailed(
            INVALID_ARGUMENT, f"tensor parsing error: {name}: {count} elements, {held} values"
        )
    if not tensor.tensor_content:
        array = np.empty(count, dtype=object)
        array[:] = list(tensor.string_val)
        return array.reshape([dim.size for dim in tensor.tensor_shape.dim])
    try:
        parsed: np.ndarray = tf.io.parse_tensor(tensor.SerializeToString(), tf.string).numpy()
    except tf.errors.OpError as error:
        raise CallFailed(INVALID_ARGUMENT, f"tensor parsing error: {name}") from error
    return parsed
