"""The list of operations holds what any model needs, no more, and TensorFlow's own alone."""

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from export import saved_model
from export.module import CaptionModule
from export.operations import ALLOWED, SAVER, Operations, check_operations, operations
from model.encoder import EncoderSettings
from model.errors import CheckFailed
from model.preprocessing import KEEP, SQUASH
from serving.layout import SAVED_MODEL_FILE
from tests.export_fixtures import make

# Encoder's image_size, grid_size and aspect; changed settings. Each setting is in one of them.
VARIANTS: dict[str, tuple[tuple[int, int, str], dict[str, Any]]] = {
    "defaults": ((64, 2, SQUASH), {}),
    "every rule": (
        (100, 3, KEEP),
        {
            "length_penalty": 0.7,
            "min_length": 2,
            "block_ngrams": 2,
            "tie_embeddings": True,
            "num_layers": 3,
            "normalise_cells": True,
            "training.precision": "bfloat16",
        },
    ),
    "greedy, of one cell": (
        (64, 1, SQUASH),
        {
            "beam_width": 1,
            "embedding_size": 16,
            "tie_embeddings": True,
            "block_ngrams": 1,
            "training.precision": "float16",
        },
    ),
    "pooled": ((96, 2, KEEP), {"training.xla": True}),
    "tuned": ((64, 2, SQUASH), {"encoder.trainable": "from_block_4"}),
}


def write(root: Path, settings: EncoderSettings, changes: dict[str, Any]) -> Path:
    """The SavedModel of an untrained captioner with these settings."""
    trained, encoder, model_dir = make(root, settings, {"block_ngrams": 0, **changes})
    saved_model.write(CaptionModule(trained, encoder), model_dir, root / "1", "tiny")
    return root / "1"


@pytest.fixture(scope="module", name="seen")
def fixture_seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Operations]:
    """Operations of each variant."""
    found = {}
    for name, (encoder, changes) in VARIANTS.items():
        root = tmp_path_factory.mktemp("variant")
        path = write(root, EncoderSettings("random:0", *encoder), changes)
        found[name] = operations(path / SAVED_MODEL_FILE)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_any_settings_can_be_exported(seen: dict[str, Operations], variant: str) -> None:
    found = seen[variant]
    assert found.answering <= ALLOWED, found.answering - ALLOWED
    assert found.other <= ALLOWED | SAVER, found.other - ALLOWED - SAVER
    assert len(found.answering) > 80


@pytest.mark.slow
def test_nothing_is_listed_that_no_model_needs(seen: dict[str, Operations]) -> None:
    everything = set[str]().union(*(found.answering | found.other for found in seen.values()))
    assert everything == ALLOWED | SAVER


def test_all_that_is_listed_is_tensorflow_s_own() -> None:
    unknown = [name for name in ALLOWED | SAVER if op_def_registry.get(name) is None]
    assert unknown == []


class Module(tf.Module):
    """One function, which calls another; that one has a weight, as a model's have."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.weight = tf.Variable("")
        inner = tf.function(lambda text: tf.strings.join([operation(text), self.weight]))
        self.serve = tf.function(
            lambda text: tf.identity(inner(text)),
            input_signature=[tf.TensorSpec([None], tf.string, name="text")],
        )


def save(tmp_path: Path, operation: Any) -> Path:
    module = Module(operation)
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.serve)
    return tmp_path / "1" / SAVED_MODEL_FILE


def saves(text: tf.Tensor) -> tf.Tensor:
    """Writes a file that the request names."""
    empty = tf.constant([""])
    tf.raw_ops.SaveV2(prefix=text[0], tensor_names=empty, shape_and_slices=empty, tensors=[text])
    return text


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda text: tf.numpy_function(lambda x: x, [text], tf.string), "PyFunc"),
        (lambda text: tf.py_function(lambda x: x, [text], tf.string), "EagerPyFunc"),
        # Stock, and not for a server: it reads whatever file a request names.
        (lambda text: tf.map_fn(tf.io.read_file, text), "ReadFile"),
        (tf.strings.unicode_transcode, "UnicodeTranscode"),
        # Every model has it, to be saved; no request may.
        (lambda text: saves(text), "SaveV2"),
    ],
)
def test_what_is_not_listed_is_refused_by_name(tmp_path: Path, operation: Any, name: str) -> None:
    if name == "UnicodeTranscode":

        def operation(text: tf.Tensor) -> tf.Tensor:
            return tf.strings.unicode_transcode(text, "UTF-8", "UTF-16-BE")

    path = save(tmp_path, operation)
    with pytest.raises(CheckFailed, match=rf"touch files: (\w+, )*{name}(,|;)"):
        check_operations(path)


def test_what_is_listed_is_counted(tmp_path: Path) -> None:
    path = save(tmp_path, tf.strings.strip)
    found = operations(path)
    assert {"StringStrip", "Identity"} <= found.answering <= ALLOWED
    assert "SaveV2" in found.other
    assert found.other <= ALLOWED | SAVER
    assert check_operations(path) == len(found.answering) + len(found.other)


def test_a_graph_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / SAVED_MODEL_FILE
    for content in (None, b"\xff" * 9):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(CheckFailed, match=r"saved_model\.pb: cannot be read"):
            operations(file)
