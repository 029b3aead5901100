"""A SavedModel in this process: the one way in which server and in-process client run it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.protobuf import saved_model_pb2

from model.errors import InvalidInput
from serving import metadata
from serving.errors import INVALID_ARGUMENT, CallFailed
from serving.metadata import ModelMetadata, Signature, TensorSpec

SAVED_MODEL_FILE = "saved_model.pb"
_MAX_MESSAGE = 500


@dataclass(frozen=True)
class ModelVersion:
    """A published version: MODELS/NAME/VERSION."""

    path: Path
    name: str
    version: int


def find_version(model_dir: str | Path) -> ModelVersion:
    """The version directory itself, or the highest version under MODELS/NAME.

    Raises:
      InvalidInput: there is no such directory, or no version in it.
    """
    path = Path(model_dir).resolve()
    if not path.is_dir():
        raise InvalidInput(f"{model_dir}: no such directory; expected MODELS/NAME of `export`")
    if (path / SAVED_MODEL_FILE).is_file():
        if not _is_version(path):
            raise InvalidInput(
                f"{model_dir}: a SavedModel outside a version directory; "
                "expected a number as its name (MODELS/NAME/VERSION)"
            )
    else:
        versions = [child for child in path.iterdir() if child.is_dir() and _is_version(child)]
        if not versions:
            raise InvalidInput(
                f"{model_dir}: no version in it; expected MODELS/NAME/VERSION/{SAVED_MODEL_FILE}, "
                "as `captionbeam export --output MODELS/NAME` publishes it"
            )
        path = max(versions, key=lambda child: int(child.name))
    return ModelVersion(path, path.parent.name, int(path.name))


class LoadedModel:
    """A SavedModel that has the contract's signatures, ready to be called by many threads.

    Attributes:
      metadata: name of the directory, version, signatures.
      signature_defs: the SavedModel's own `SignatureDef` messages by name.
    """

    def __init__(self, model_dir: str | Path) -> None:
        """Loads MODELS/NAME (highest version) or MODELS/NAME/VERSION.

        Raises:
          InvalidInput: there is nothing to load, or it cannot be loaded.
          ModelMismatch: it is not a captionbeam model.
        """
        found = find_version(model_dir)
        self.signature_defs = _read_signature_defs(found.path)
        self.metadata = ModelMetadata(
            found.name, found.version, metadata.from_signature_defs(self.signature_defs)
        )
        metadata.check(self.metadata)
        try:
            self._model = tf.saved_model.load(str(found.path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise InvalidInput(
                f"{found.path}: cannot be loaded ({_one_line(str(error))}); export it again"
            ) from error

    def signature(self, name: str) -> Signature:
        """The named signature, or CallFailed(INVALID_ARGUMENT)."""
        try:
            return self.metadata.signatures[name]
        except KeyError:
            raise CallFailed(
                INVALID_ARGUMENT, f'Serving signature key "{name}" not found.'
            ) from None

    def verify(self, signature: str, given: Mapping[str, TensorSpec]) -> None:
        """Raises CallFailed(INVALID_ARGUMENT) unless these tensors can be fed.

        The messages are TensorFlow Serving's own (`predict_util.cc`).
        """
        expected = self.signature(signature).inputs
        extra, missing = set(given) - set(expected), set(expected) - set(given)
        if len(given) != len(expected):
            raise CallFailed(
                INVALID_ARGUMENT,
                f"input size does not match signature: {len(given)}!={len(expected)} "
                f"len({_names(given)}) != len({_names(expected)}). "
                f"Sent extra: {_names(extra)}. Missing but required: {_names(missing)}.",
            )
        if extra:
            raise CallFailed(
                INVALID_ARGUMENT,
                f"input tensor alias not found in signature: {min(extra)}. "
                f"Inputs expected to be in the set {_names(expected)}.",
            )
        for name, spec in expected.items():
            if not spec.accepts(given[name]):
                raise CallFailed(
                    INVALID_ARGUMENT, f"Expects {name} to be {spec} but {given[name]} is provided"
                )

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
          signature: its name.
          inputs: by name; strings as object arrays of bytes.

        Returns:
          Every output by name; strings as object arrays of bytes.

        Raises:
          CallFailed: the inputs do not fit, or the graph refuses or fails.
        """
        self.verify(signature, {name: _describe(array) for name, array in inputs.items()})
        try:
            tensors = {name: tf.constant(array) for name, array in inputs.items()}
            outputs = self._model.signatures[signature](**tensors)
            return {name: tensor.numpy() for name, tensor in outputs.items()}
        except tf.errors.OpError as error:
            raise CallFailed(_code_name(error), _one_line(error.message)) from error


def _is_version(path: Path) -> bool:
    return path.name.isascii() and path.name.isdecimal()


def _read_signature_defs(path: Path) -> dict[str, Any]:
    file = path / SAVED_MODEL_FILE
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise InvalidInput(f"{file}: no readable SavedModel ({error}); export it again") from error
    for graph in saved_model.meta_graphs:
        if tf.saved_model.SERVING in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise InvalidInput(f'{file}: no graph tagged "{tf.saved_model.SERVING}"; export it again')


def _names(names: Mapping[str, object] | set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _describe(array: np.ndarray) -> TensorSpec:
    dtype = "string" if array.dtype == object else array.dtype.name
    return TensorSpec(dtype, array.shape)


def _code_name(error: tf.errors.OpError) -> str:
    # gRPC and TensorFlow number and name their statuses alike; only the spelling differs.
    names = {
        tf.errors.INVALID_ARGUMENT: INVALID_ARGUMENT,
        tf.errors.RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
        tf.errors.FAILED_PRECONDITION: "FAILED_PRECONDITION",
        tf.errors.OUT_OF_RANGE: "OUT_OF_RANGE",
        tf.errors.UNIMPLEMENTED: "UNIMPLEMENTED",
    }
    return names.get(error.error_code, "INTERNAL")


def _one_line(message: str) -> str:
    """The sentence that says what is wrong, without TensorFlow's account of where."""
    noise = ("Graph execution error", "Detected at node", "<stack traces", "[[")
    lines = [line.strip() for line in message.splitlines()]
    kept = " ".join(line for line in lines if line and not line.startswith(noise))
    # An assertion prints the tensors that it looked at, here whole images.
    return kept[:_MAX_MESSAGE] or "the graph failed without a message"
