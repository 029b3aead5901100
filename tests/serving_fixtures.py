"""A small model with the contract's signatures, and servers and transports for tests.

The model's caption is a function of the image's bytes (`tiny_caption`), so that a caption
paired with another image shows. The bytes b"bad" fail the whole request, as bytes that no
decoder takes do.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving import contract
from serving.answers import Answer
from serving.errors import CallFailed
from serving.metadata import ModelMetadata
from serving.server import Server
from serving.server_settings import ServerSettings

TOKENS = 4
CELLS = 9
PLACES = [[0.1, 0.4, 0.7], [0.2, 0.5, 0.8]]
HYPOTHESES = 3


class TinyCaptioner(tf.Module):
    """Captions "size LENGTH hash HASH" and a tag; attends to cell t at word t."""

    def __init__(self, tag: str = "") -> None:
        super().__init__()
        self._tag = tag

    def best(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.debugging.assert_none_equal(image_bytes, b"bad", message="cannot decode")
        size = tf.strings.length(image_bytes)
        digest = tf.strings.to_hash_bucket_fast(image_bytes, 1_000_000)
        caption = tf.strings.join(
            ["size ", tf.strings.as_string(size), " hash ", tf.strings.as_string(digest), self._tag]
        )
        count = tf.shape(image_bytes)[0]
        return {
            contract.STATUS: tf.zeros([count], tf.int32),
            contract.CAPTION: caption,
            contract.LOG_PROB: -tf.cast(size, tf.float32) / 4,
            contract.TOKEN_IDS: tf.stack([size, size + 1, size * 0, size * 0], axis=1),
            contract.LENGTH: tf.fill([count], 2),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)])
    def serving_default(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.best(image_bytes)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)])
    def explain(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        count = tf.shape(image_bytes)[0]
        size = tf.strings.as_string(tf.strings.length(image_bytes))
        words = tf.stack([tf.fill([count], "size"), size], axis=1)
        eye = tf.eye(TOKENS, CELLS, batch_shape=[count])
        return self.best(image_bytes) | {
            contract.WORDS: tf.pad(words, [[0, 0], [0, TOKENS - 2]], constant_values=""),
            contract.ATTENTION: eye,
            contract.PLACES: tf.tile(tf.constant([PLACES]), [count, 1, 1]),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)])
    def nbest(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        best = self.best(image_bytes)
        ranks = range(HYPOTHESES)
        captions = [tf.strings.join([best[contract.CAPTION], f" rank {k}"]) for k in ranks]
        log_probs = [best[contract.LOG_PROB] - k for k in ranks]
        return {
            contract.STATUS: best[contract.STATUS],
            contract.CAPTIONS: tf.stack(captions, axis=1),
            contract.LOG_PROBS: tf.stack(log_probs, axis=1),
        }


class Untitled(tf.Module):
    """A model that is not ours: one signature, of floats, with a fixed batch."""

    @tf.function(input_signature=[tf.TensorSpec([1, 3], tf.float32, name="pixels")])
    def serving_default(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {contract.CAPTION: pixels}


def save_tiny_model(model_dir: Path, version: int = 1, tag: str = "") -> Path:
    """Writes MODELS/NAME/VERSION of TinyCaptioner; returns MODELS/NAME."""
    module = TinyCaptioner(tag)
    names = (contract.SERVING_DEFAULT, contract.EXPLAIN, contract.NBEST)
    signatures = {name: getattr(module, name) for name in names}
    tf.saved_model.save(module, str(model_dir / str(version)), signatures=signatures)
    return model_dir


def save_foreign_model(model_dir: Path) -> Path:
    """Writes a SavedModel whose signatures are not the contract's."""
    module = Untitled()
    signatures = {contract.SERVING_DEFAULT: module.serving_default}
    tf.saved_model.save(module, str(model_dir / "1"), signatures=signatures)
    return model_dir


def predict_request(images: Sequence[bytes], **spec: Any) -> Any:
    """A PredictRequest to the model "tiny", with more of its ModelSpec."""
    request = predict_pb2.PredictRequest(model_spec={"name": "tiny"} | spec)
    tensor = tf.make_tensor_proto(images, dtype=tf.string, shape=[len(images)])
    request.inputs[contract.IMAGE_BYTES].CopyFrom(tensor)
    return request


def tiny_caption(image: bytes) -> str:
    """What TinyCaptioner says of these bytes."""
    digest = int(tf.strings.to_hash_bucket_fast([image], 1_000_000)[0])
    return f"size {len(image)} hash {digest}"


def _quiet(line: str) -> None:
    """Takes a log line."""


@contextlib.contextmanager
def running_server(model_dir: Path, name: str | None = None, **settings: Any) -> Iterator[Server]:
    """A real server on free loopback ports."""
    server = Server(model_dir, ServerSettings(name=name, **settings), log=_quiet)
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=0)


class FakeTime:
    """A clock that moves only when something sleeps or is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class ScriptedTransport:
    """Passes calls to a real transport after raising a list of failures, one a call.

    Attributes:
      calls: (signature, images, timeout_s) of every predict.
      closed: whether `close` was called.
    """

    def __init__(
        self,
        inner: Any,
        failures: Sequence[CallFailed] = (),
        *,
        edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda outputs: outputs,
        takes_s: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self._failures = list(failures)
        self._edit = edit
        self._takes = takes_s
        self.calls: list[tuple[str, list[bytes], float]] = []
        self.metadata_calls = 0
        self.closed = False

    def predict(self, signature: str, image_bytes: Sequence[bytes], timeout_s: float) -> Answer:
        self.calls.append((signature, list(image_bytes), timeout_s))
        self._takes()
        if self._failures:
            raise self._failures.pop(0)
        answer = self._inner.predict(signature, image_bytes, timeout_s)
        return Answer(self._edit(answer.outputs), answer.version)

    def metadata(self, timeout_s: float) -> ModelMetadata:
        self.metadata_calls += 1
        metadata: ModelMetadata = self._inner.metadata(timeout_s)
        return metadata

    def close(self) -> None:
        self.closed = True
