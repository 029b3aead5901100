"""How a client reaches a model: over gRPC, or as a SavedModel in this process.

A transport makes one attempt and raises `CallFailed`; deadlines over several attempts,
retries and the meaning of an answer belong to `serving.client`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import contract, metadata
from serving.errors import INVALID_ARGUMENT, CallFailed
from serving.loaded_model import LoadedModel
from serving.metadata import ModelMetadata

# gRPC receives 4 MiB unless told otherwise and sends any size. A few photographs are more,
# and so are the weights that `explain` answers for some 1,000 images.
MAX_MESSAGE_BYTES = 64 * 2**20
SIGNATURE_DEF = "signature_def"

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # One retry policy, that of serving.client.
    ("grpc.enable_retries", 0),
    # A captioning server is reached directly, on loopback above all.
    ("grpc.enable_http_proxy", 0),
    # The default waits a second after a refused connection, longer than our first retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class Transport(Protocol):
    """One attempt at a time; safe to call from many threads."""

    def predict(
        self, signature: str, image_bytes: Sequence[bytes], timeout_s: float
    ) -> dict[str, np.ndarray]:
        """Runs `signature` on N images.

        Args:
          signature: one of the contract's names.
          image_bytes: canonical bytes of N images.
          timeout_s: seconds that this attempt may take.

        Returns:
          The model's outputs by name; strings as object arrays of bytes.

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
    ) -> dict[str, np.ndarray]:
        """Runs the graph here; see Transport."""
        # dtype=object: NumPy's own bytes type drops trailing zero bytes.
        images = np.array(list(image_bytes), dtype=object)
        return self._model.predict(signature, {contract.IMAGE_BYTES: images})

    def metadata(self, timeout_s: float) -> ModelMetadata:  # noqa: ARG002
        """Name of the directory, version, signatures."""
        return self._model.metadata

    def close(self) -> None:
        """Nothing to close; the model goes with its last reference."""


class GrpcTransport:
    """A server that speaks `tensorflow.serving.PredictionService`."""

    def __init__(self, address: str, model_name: str) -> None:
        """Opens a channel lazily: nothing is sent before the first call.

        Args:
          address: HOST:PORT, or any other gRPC target.
          model_name: name under which the server knows the model.
        """
        self._model_name = model_name
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def predict(
        self, signature: str, image_bytes: Sequence[bytes], timeout_s: float
    ) -> dict[str, np.ndarray]:
        """One Predict call; see Transport."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model_name
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
        response = self._call(self._stub.Predict, request, timeout_s)
        try:
            return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
        except (TypeError, ValueError) as error:
            raise CallFailed("DATA_LOSS", f"an output that is no tensor ({error})") from error

    def metadata(self, timeout_s: float) -> ModelMetadata:
        """One GetModelMetadata call; see Transport."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=[SIGNATURE_DEF])
        request.model_spec.name = self._model_name
        response = self._call(self._stub.GetModelMetadata, request, timeout_s)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        try:
            response.metadata[SIGNATURE_DEF].Unpack(definitions)
        except DecodeError as error:
            raise CallFailed("DATA_LOSS", f"unreadable metadata ({error})") from error
        return ModelMetadata(
            self._model_name,
            response.model_spec.version.value,
            metadata.from_signature_defs(definitions.signature_def),
        )

    def close(self) -> None:
        """Closes the channel and cancels what is under way."""
        self._channel.close()

    @staticmethod
    def _call(method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            details = " ".join((error.details() or "").split())
            raise CallFailed(error.code().name, details or "no details") from error
