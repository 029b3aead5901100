"""How a client reaches a model: over gRPC, or as a SavedModel in this process.

A transport makes one attempt and raises `CallFailed`; deadlines over several attempts,
retries and the meaning of an answer belong to `serving.client`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import contract, metadata
from serving.answers import Answer
from serving.channel import MAX_MESSAGE_BYTES, open_channel
from serving.errors import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    RESOURCE_EXHAUSTED,
    CallFailed,
    ModelLoading,
    OversizedAnswer,
)
from serving.loaded_model import LoadedModel
from serving.metadata import ModelMetadata
from serving.target import Target

SIGNATURE_DEF = "signature_def"
_State = get_model_status_pb2.ModelVersionStatus.State
# To AVAILABLE it came between the call that did not find it and the question for its state, or
# another replica has it.
_COMING = frozenset({_State.START, _State.LOADING, _State.AVAILABLE})


class Transport(Protocol):
    """One attempt at a time; safe to call from many threads."""

    def predict(self, signature: str, image_bytes: Sequence[bytes], timeout_s: float) -> Answer:
        """Runs `signature` on N images.

        Args:
          signature: one of the contract's names.
          image_bytes: canonical bytes of N images.
          timeout_s: seconds that this attempt may take.

        Raises:
          CallFailed: no answer, or a refusal.
        """

    def metadata(self, timeout_s: float) -> ModelMetadata:
        """Asks the model what it is; raises CallFailed."""

    def close(self) -> None:
        """Lets go of channel and model; further calls are errors."""


class SavedModelTransport:
    """The model in this process. TensorFlow cannot interrupt a call, so no deadline holds."""

    def __init__(self, model_dir: str | Path) -> None:
        """Loads MODELS/NAME (highest version) or MODELS/NAME/VERSION; raises InvalidInput."""
        self._model: LoadedModel = LoadedModel(model_dir)

    def predict(
        self,
        signature: str,
        image_bytes: Sequence[bytes],
        timeout_s: float,  # noqa: ARG002
    ) -> Answer:
        """Runs the graph here; see Transport."""
        # dtype=object: NumPy's own bytes type drops trailing zero bytes.
        images = np.array(list(image_bytes), dtype=object)
        outputs = self._model.predict(signature, {contract.IMAGE_BYTES: images})
        return Answer(outputs, self._model.metadata.version)

    def metadata(self, timeout_s: float) -> ModelMetadata:  # noqa: ARG002
        """Name of the directory, version, signatures."""
        return self._model.metadata

    def close(self) -> None:
        """Frees the model."""
        self._model.close()


class GrpcTransport:
    """A server that speaks `tensorflow.serving.PredictionService`, or several replicas of it."""

    def __init__(self, target: Target) -> None:
        """Opens a channel lazily: nothing is sent before the first call.

        Args:
          target: what `server` and the fields after it say.

        Raises:
          InvalidInput: as `serving.channel.open_channel`.
        """
        self._name = target.model_name
        self._label = target.version_label
        self._channel = open_channel(target)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, signature: str, image_bytes: Sequence[bytes], timeout_s: float) -> Answer:
        """One Predict call; see Transport."""
        request = predict_pb2.PredictRequest()
        self._ask_for_model(request.model_spec)
        request.model_spec.signature_name = signature
        request.inputs[contract.IMAGE_BYTES].CopyFrom(
            tf.make_tensor_proto(list(image_bytes), dtype=tf.string, shape=[len(image_bytes)])
        )
        # gRPC would call this RESOURCE_EXHAUSTED, as if waiting could help.
        if request.ByteSize() > MAX_MESSAGE_BYTES:
            raise CallFailed(
                INVALID_ARGUMENT,
                f"a request of {request.ByteSize()} bytes; expected at most {MAX_MESSAGE_BYTES}",
            )
        response = self._call(self._prediction.Predict, request, timeout_s)
        try:
            outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
        except (TypeError, ValueError) as error:
            raise CallFailed("DATA_LOSS", f"an output that is no tensor ({error})") from error
        spec = response.model_spec
        return Answer(outputs, spec.version.value if spec.HasField("version") else None)

    def metadata(self, timeout_s: float) -> ModelMetadata:
        """One GetModelMetadata call; see Transport."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=[SIGNATURE_DEF])
        self._ask_for_model(request.model_spec)
        response = self._call(self._prediction.GetModelMetadata, request, timeout_s)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        try:
            response.metadata[SIGNATURE_DEF].Unpack(definitions)
        except DecodeError as error:
            raise CallFailed("DATA_LOSS", f"unreadable metadata ({error})") from error
        return ModelMetadata(
            self._name,
            response.model_spec.version.value,
            metadata.from_signature_defs(definitions.signature_def),
        )

    def close(self) -> None:
        """Closes the channel and cancels what is under way."""
        self._channel.close()

    def _ask_for_model(self, spec: Any) -> None:
        spec.name = self._name
        if self._label is not None:
            spec.version_label = self._label

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        began_s = time.monotonic()
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            failed = _failed(error)
            if failed.code == NOT_FOUND:
                left_s = timeout_s - (time.monotonic() - began_s)
                raise self._loading(left_s) or failed from error
            raise failed from error

    def _loading(self, timeout_s: float) -> ModelLoading | None:
        """That the model is on its way, if the server says so."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._name
        try:
            response = self._model.GetModelStatus(request, timeout=timeout_s)
        except grpc.RpcError:
            return None
        found = {status.version: status.state for status in response.model_version_status}
        # A label that no version has stays unknown however many versions are there.
        coming = _COMING if self._label is None else _COMING - {_State.AVAILABLE}
        if coming.isdisjoint(found.values()):
            return None
        states = ", ".join(
            f"version {version} {_State.Name(state)}" for version, state in sorted(found.items())
        )
        return ModelLoading(f"model {self._name} is not ready: {states}")


def _failed(error: grpc.RpcError) -> CallFailed:
    code = error.code().name
    details = " ".join((error.details() or "").split()) or "no details"
    # What is too large now is too large again: gRPC's RESOURCE_EXHAUSTED is not to be waited for.
    if code == RESOURCE_EXHAUSTED and "message larger than max" in details:
        # CLIENT is this process; a server that receives too much speaks of a request.
        if "CLIENT: Received" in details or "Sent message" in details:
            return OversizedAnswer(details)
        return CallFailed(INVALID_ARGUMENT, details)
    # An image that is refused is INVALID_ARGUMENT, too. No image is at fault for a label.
    if code == INVALID_ARGUMENT and "version label" in details:
        return CallFailed(NOT_FOUND, details)
    return CallFailed(code, details)
