"""Writes a version: a SavedModel that TensorFlow Serving loads as is, with its warm-up."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from export import publishing
from export.module import CaptionModule
from export.samples import sample_image
from export.server_files import BATCH_SIZES
from model.records import MANIFEST_FILE, VOCABULARY_FILE
from serving import contract
from serving.layout import WARMUP_FILE

# Signature and rows of each. The first call of a signature is what costs most, the first of a
# size less; people ask for explanations one at a time.
WARMUP_REQUESTS = (
    *((contract.SERVING_DEFAULT, size) for size in BATCH_SIZES),
    (contract.EXPLAIN, 1),
    (contract.NBEST, 1),
)


def publish(
    module: CaptionModule, model_dir: Path, name_dir: Path, verify: Callable[[Path], object]
) -> Path:
    """Write a new version of MODELS/NAME.

    Args:
      module: what to export.
      model_dir: MODEL_DIR, whose vocabulary becomes an asset, like the module's manifest.
      name_dir: MODELS/NAME.
      verify: called with the unpublished directory; what it raises prevents publishing.

    Returns:
      MODELS/NAME/VERSION.
    """

    def make(unpublished: Path) -> None:
        try:
            write(module, model_dir, unpublished, name_dir.name)
        except tf.errors.OpError as error:
            # TensorFlow's own writers met a full disk.
            raise publishing.unwritten(name_dir, _reason(error)) from error
        verify(unpublished)

    return publishing.publish(name_dir, make)


def _reason(error: tf.errors.OpError) -> str:
    """What the system said, without TensorFlow's account of where it met it."""
    first: str = error.message.partition("\n")[0]
    return re.sub(r"\{\{.*?\}\}|\[Op:.*", "", first).rpartition("; ")[2].strip()[:200]


def write(module: CaptionModule, model_dir: Path, path: Path, name: str) -> None:
    """Save the module with its assets and warm-up requests under `path`."""
    signatures = module.signatures()
    with tempfile.TemporaryDirectory() as scratch:
        manifest = Path(scratch) / MANIFEST_FILE
        manifest.write_text(module.manifest.to_json(), encoding="utf-8")
        files = (model_dir / VOCABULARY_FILE, manifest)
        module.assets = [tf.saved_model.Asset(str(file)) for file in files]
        tf.saved_model.save(module, str(path), signatures=signatures)
    warmup = path / WARMUP_FILE
    warmup.parent.mkdir()
    with tf.io.TFRecordWriter(str(warmup)) as writer:
        for signature, rows in WARMUP_REQUESTS:
            writer.write(_warmup_log(name, signature, rows).SerializeToString())


def _warmup_log(name: str, signature: str, rows: int) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=name, signature_name=signature)
    )
    images = tf.make_tensor_proto([sample_image()] * rows)
    request.inputs[contract.IMAGE_BYTES].CopyFrom(images)
    return prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )
