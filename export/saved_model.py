"""Writes and publishes MODELS/NAME/VERSION: a SavedModel that TensorFlow Serving loads as is.

A version is written beside its place under a temporary name, which the server does not
poll, verified, and published by one rename.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from export.module import CaptionModule
from model.records import MANIFEST_FILE, VOCABULARY_FILE
from serving import contract

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MODELS_CONFIG, BATCHING_FILE = "models.config", "batching_parameters.txt"
MONITORING_FILE = "monitoring.config"
# The last is the largest batch that the server forms.
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
# Where the tensorflow/serving image expects MODELS to be mounted.
_CONTAINER_ROOT = "/models"


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
    name_dir.mkdir(parents=True, exist_ok=True)
    unpublished = name_dir / f".unpublished-{socket.gethostname()}-{os.getpid()}"
    try:
        write(module, model_dir, unpublished, name_dir.name)
        verify(unpublished)
        version_dir = _rename_to_next_version(unpublished, name_dir)
    finally:
        shutil.rmtree(unpublished, ignore_errors=True)
    _write_server_files(name_dir)
    return version_dir


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
        for size in BATCH_SIZES:
            writer.write(_warmup_log(name, size).SerializeToString())


def sample_image() -> bytes:
    """A small JPEG that every model can caption: a grey-to-white ramp of 64 × 64 pixels."""
    ramp = tf.cast(tf.linspace(128.0, 255.0, 64), tf.uint8)
    pixels = tf.tile(ramp[tf.newaxis, :, tf.newaxis], [64, 1, 3])
    return bytes(tf.io.encode_jpeg(pixels).numpy())


def _warmup_log(name: str, batch_size: int) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=name, signature_name=contract.SERVING_DEFAULT)
    )
    images = tf.make_tensor_proto([sample_image()] * batch_size)
    request.inputs[contract.IMAGE_BYTES].CopyFrom(images)
    return prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )


def _rename_to_next_version(unpublished: Path, name_dir: Path) -> Path:
    """Publish under one more than the highest version; another export may take it first."""
    while True:
        taken = [int(child.name) for child in name_dir.iterdir() if child.name.isdecimal()]
        version_dir = name_dir / str(max(taken, default=0) + 1)
        try:
            # Renaming a directory over one that is not empty fails.
            unpublished.rename(version_dir)
        except OSError:
            if not version_dir.exists():
                raise
        else:
            return version_dir


def _write_server_files(name_dir: Path) -> None:
    """Write what tensorflow_model_server is started with, beside NAME."""
    models = name_dir.resolve().parent
    config = model_server_config_pb2.ModelServerConfig()
    names = [child.name for child in models.iterdir() if _has_versions(child)]
    for name in sorted(names):
        config.model_config_list.config.add(
            name=name, base_path=f"{_CONTAINER_ROOT}/{name}", model_platform="tensorflow"
        )
    sizes = "".join(f"allowed_batch_sizes: {size}\n" for size in BATCH_SIZES)
    files = {
        MODELS_CONFIG: text_format.MessageToString(config),
        BATCHING_FILE: (
            f"max_batch_size {{ value: {BATCH_SIZES[-1]} }}\n"
            "batch_timeout_micros { value: 5000 }\n"
            "max_enqueued_batches { value: 64 }\n"
            "num_batch_threads { value: 2 }\n" + sizes
        ),
        MONITORING_FILE: (
            'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }\n'
        ),
    }
    for file, text in files.items():
        temporary = models / f".{file}-{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(models / file)


def _has_versions(directory: Path) -> bool:
    """Whether a directory is a model's NAME; what may not be looked into is none of ours."""
    try:
        return any(path.parent.name.isdecimal() for path in directory.glob("*/saved_model.pb"))
    except OSError:
        return False
