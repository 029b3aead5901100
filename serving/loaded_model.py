"""A SavedModel in this process: the one way in which server and in-process client run it."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from model.errors import CaptionbeamError, InvalidInput
from serving import contract, graph, published
from serving.batching_parameters import BatchingParameters
from serving.errors import DEADLINE_EXCEEDED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, CallFailed
from serving.graph import Account
from serving.metadata import Signature, TensorSpec
from serving.published import ModelVersion

_MAX_MESSAGE = 500


@dataclass(frozen=True)
class Ran:
    """An answer of the model, and the batch it was computed in.

    Attributes:
      outputs: by name; strings as object arrays of bytes.
      account: NumPy arrays [N].
    """

    outputs: Mapping[str, np.ndarray]
    account: Account


class LoadedModel:
    """A SavedModel that has the contract's signatures, ready to be called by many threads.

    It runs in a session of its own, as in TensorFlow Serving, so that closing it frees all of it.

    Attributes:
      metadata: name of the directory, version, signatures.
      signature_defs: the SavedModel's own `SignatureDef` messages by name.
      path: MODELS/NAME/VERSION.
    """

    def __init__(
        self, model_dir: str | Path | ModelVersion, batching: BatchingParameters | None = None
    ) -> None:
        """Loads MODELS/NAME (highest version) or MODELS/NAME/VERSION.

        Args:
          model_dir: the directory, or a version that was found.
          batching: how calls that come together share a batch; None for each its own.

        Raises:
          InvalidInput: there is nothing to load, or it cannot be loaded.
          ModelMismatch: it is not a captionbeam model.
        """
        found = (
            model_dir if isinstance(model_dir, ModelVersion) else published.find_version(model_dir)
        )
        self.path = found.path
        self._next, self._numbering = 0, threading.Lock()
        try:
            self.metadata, self.signature_defs = published.describe(found)
            with tf.Graph().as_default() as loaded:
                signatures = graph.build(found.path, batching)
                restore = tf.compat.v1.global_variables_initializer()
            self._session = tf.compat.v1.Session(graph=loaded)
            self._session.run(restore)
            self._calls = {
                name: self._session.make_callable(
                    [signature.outputs, signature.account],
                    feed_list=[signature.images, signature.deadlines_s, signature.numbers],
                )
                for name, signature in signatures.items()
            }
        except CaptionbeamError:
            raise
        # A broken file leads TensorFlow's loader to errors of every kind.
        except Exception as error:
            raise InvalidInput(
                f"{found.path}: cannot be loaded ({_one_line(str(error))}); export it again"
            ) from error

    def _numbered(self, count: int) -> np.ndarray:
        """Numbers that no other rows have."""
        with self._numbering:
            first = self._next
            self._next += count
        return np.arange(first, first + count, dtype=np.int64)

    def close(self) -> None:
        """Frees the model; calls after it are errors."""
        self._session.close()

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
        """Runs one signature, for as long as it takes; the outputs of `run`."""
        return dict(self.run(signature, inputs).outputs)

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], deadline_s: float = math.inf
    ) -> Ran:
        """Runs one signature.

        Args:
          signature: its name.
          inputs: by name; strings as object arrays of bytes.
          deadline_s: seconds since 1970; what has not begun by then is not computed.

        Raises:
          CallFailed: the inputs do not fit, the deadline has passed, the queue is full, or the
            graph refuses or fails.
        """
        self.verify(signature, {name: _describe(array) for name, array in inputs.items()})
        images, declared = inputs[contract.IMAGE_BYTES], self.signature(signature).outputs
        try:
            outputs, account = self._calls[signature](
                images, np.full(len(images), deadline_s), self._numbered(len(images))
            )
        except tf.errors.OpError as error:
            raise CallFailed(_code_name(error), _one_line(error.message)) from error
        # TensorFlow's Python cannot tell what its graph says of bytes that are no UTF-8.
        except UnicodeDecodeError as error:
            message = error.object.decode(errors="replace")
            raise CallFailed(INVALID_ARGUMENT, _one_line(message)) from error
        if not all(account.in_time):
            raise CallFailed(DEADLINE_EXCEEDED, "Deadline Exceeded before the batch began")
        if not len(images):
            # The scheduler passes no images by, and knows no shapes then.
            outputs = {name: _no_rows(value, declared[name]) for name, value in outputs.items()}
        return Ran(outputs, account)


def _names(names: Mapping[str, object] | set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _no_rows(empty: np.ndarray, declared: TensorSpec) -> np.ndarray:
    sizes = (declared.dims or (None,))[1:]
    return empty.reshape([0, *(size or 0 for size in sizes)])


def _describe(array: np.ndarray) -> TensorSpec:
    dtype = "string" if array.dtype == object else array.dtype.name
    return TensorSpec(dtype, array.shape)


def _code_name(error: tf.errors.OpError) -> str:
    # gRPC and TensorFlow number and name their statuses alike; only the spelling differs.
    names = {
        tf.errors.INVALID_ARGUMENT: INVALID_ARGUMENT,
        tf.errors.RESOURCE_EXHAUSTED: RESOURCE_EXHAUSTED,
        # The scheduler's word for a full queue.
        tf.errors.UNAVAILABLE: RESOURCE_EXHAUSTED,
        tf.errors.FAILED_PRECONDITION: "FAILED_PRECONDITION",
        tf.errors.OUT_OF_RANGE: "OUT_OF_RANGE",
        tf.errors.UNIMPLEMENTED: "UNIMPLEMENTED",
    }
    return names.get(error.error_code, "INTERNAL")


def _one_line(message: str) -> str:
    """The sentence that says what is wrong, without TensorFlow's account of where."""
    noise = ("Graph execution error", "Detected at node", "Node: ", "File ", "<stack traces", "[[")
    lines = [line.strip() for line in message.partition("Original stack trace")[0].splitlines()]
    kept = " ".join(line for line in lines if line and not line.startswith(noise))
    # An assertion prints the tensors that it looked at, here whole images.
    return kept[:_MAX_MESSAGE] or "the graph failed without a message"
