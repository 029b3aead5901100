"""`tensorflow.serving.PredictionService` and `ModelService` over a Service."""

import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceServicer
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceServicer

from serving.errors import DEADLINE_EXCEEDED, INVALID_ARGUMENT, CallFailed
from serving.metadata import TensorSpec
from serving.service import Asked, Service
from serving.transport import SIGNATURE_DEF
from serving.versions import VersionStatus, Wanted


class GrpcApi(PredictionServiceServicer, ModelServiceServicer):
    """The RPCs. Method names are the protocol's."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._calls = 0
        self._ended = threading.Condition()

    def wait_until_idle(self, timeout_s: float) -> None:
        """Returns when no call is being answered, or after the time."""
        with self._ended:
            self._ended.wait_for(lambda: self._calls == 0, timeout_s)

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Runs a signature over the tensors of the request."""
        return self._answer("Predict", self._predict, request, context)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The model's signatures."""
        return self._answer("GetModelMetadata", self._metadata, request, context)

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The states of the model's versions."""
        return self._answer("GetModelStatus", self._status, request, context)

    def _answer(
        self, method: str, answer: Callable[[Any, Any], Any], request: Any, context: Any
    ) -> Any:
        code = "INTERNAL"
        with self._ended:
            self._calls += 1
        try:
            answered = answer(request, context)
            code = "OK"
        except CallFailed as error:
            code = error.code
            _abort(context, error)
        # Its traceback is the log's; the client gets a code that says whose fault it is.
        except Exception as error:
            traceback.print_exc()
            _abort(context, CallFailed(code, f"{type(error).__name__}: see the server's log"))
        finally:
            self._service.monitor.count("grpc", method, code)
            with self._ended:
                self._calls -= 1
                self._ended.notify_all()
        return answered

    def _predict(self, request: Any, context: Any) -> Any:
        name, wanted = _asked_model(request)
        left_s = context.time_remaining()
        if left_s is not None and left_s <= 0:
            raise CallFailed(DEADLINE_EXCEEDED, "Deadline Exceeded")
        asked = Asked(
            model=name,
            wanted=wanted,
            signature=request.model_spec.signature_name,
            specs={key: _spec(key, tensor) for key, tensor in request.inputs.items()},
            decode=partial(_decode, request.inputs),
            outputs=list(request.output_filter),
            deadline_s=math.inf if left_s is None else time.time() + left_s,
        )
        predicted = self._service.predict(asked)
        response = predict_pb2.PredictResponse()
        _fill_spec(response.model_spec, name, predicted.version, predicted.signature)
        for key, array in predicted.outputs.items():
            _fill_tensor(response.outputs[key], array)
        return response

    def _metadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        if not request.metadata_field:
            raise CallFailed(
                INVALID_ARGUMENT,
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise CallFailed(INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        return metadata_response(self._service, *_asked_model(request))

    def _status(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        return status_response(self._service.status(*_asked_model(request)))


def metadata_response(service: Service, name: str, wanted: Wanted) -> Any:
    """A GetModelMetadataResponse with the signatures of a version."""
    version, signature_defs = service.metadata(name, wanted)
    definitions = get_model_metadata_pb2.SignatureDefMap()
    for key, definition in signature_defs.items():
        definitions.signature_def[key].CopyFrom(definition)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _fill_spec(response.model_spec, name, version)
    response.metadata[SIGNATURE_DEF].Pack(definitions)
    return response


def status_response(versions: list[VersionStatus]) -> Any:
    """A GetModelStatusResponse."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for found in versions:
        status = response.model_version_status.add()
        status.version = found.version
        status.state = found.state.value
        # An empty status is OK; set, so that clients that look for the field find it.
        status.status.SetInParent()
        if found.error:
            status.status.error_code = tf.errors.INVALID_ARGUMENT
            status.status.error_message = found.error
    return response


def _abort(context: Any, error: CallFailed) -> NoReturn:
    context.abort(grpc.StatusCode[error.code], error.message)
    raise AssertionError("abort raises")


def _asked_model(request: Any) -> tuple[str, Wanted]:
    """The name and the version that a request asks for; raises CallFailed without a name."""
    spec = request.model_spec
    if not request.HasField("model_spec"):
        raise CallFailed(INVALID_ARGUMENT, "Missing ModelSpec")
    if not spec.name:
        raise CallFailed(INVALID_ARGUMENT, "ModelSpec has no name specified.")
    if spec.WhichOneof("version_choice") == "version_label":
        return spec.name, Wanted(label=spec.version_label)
    return spec.name, Wanted(version=spec.version.value if spec.HasField("version") else None)


def _fill_spec(spec: Any, name: str, version: int, signature: str = "") -> None:
    spec.name = name
    spec.version.value = version
    spec.signature_name = signature


def _fill_tensor(tensor: Any, array: np.ndarray) -> None:
    """Writes an output in typed fields, as TensorFlow Serving does; some clients read no other."""
    kind = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    tensor.dtype = kind.as_datatype_enum
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    field = {tf.string: tensor.string_val, tf.float32: tensor.float_val, tf.int32: tensor.int_val}
    field[kind].extend(array.reshape(-1).tolist())


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
