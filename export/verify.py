"""What an exported directory must pass before it is published; each failure is named."""

import base64
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from export import session_check
from export.saved_model import BATCH_SIZES, WARMUP_FILE, sample_image
from model.checkpoints import Trained
from model.decoding import search_captions
from model.encoder import Encoder
from model.errors import CheckFailed
from model.fine_tuning import grids_by
from model.preprocessing import prepare
from model.records import MANIFEST_FILE, VOCABULARY_FILE, Manifest
from serving import contract
from serving.contract import Status

# Ops that need Python, or run outside the graph's process.
_FORBIDDEN = ("PyFunc", "EagerPyFunc", "PyFuncStateless")
# Seeded pictures of several sizes and both canonical formats.
_SAMPLE_SIZES = ((64, 64), (480, 640), (200, 133), (33, 257))
# Two graphs may round a grid's last bit differently; absolute, and relative to log_prob.
_LOG_PROB_TOLERANCE = 1e-3
_SESSION_TIMEOUT_S = 1800
# The least, an odd one, and the largest that the server forms.
_CHECKED_SIZES = (1, 2, 7, BATCH_SIZES[-1])


@dataclass(frozen=True)
class Verified:
    """What a process that knows the directory alone took to load it and to answer.

    Attributes:
      load_s: seconds of the load.
      peak_mib: its peak memory in MiB, TensorFlow's own included.
    """

    load_s: float
    peak_mib: float


@dataclass(frozen=True)
class Sample:
    """An image and what `serving_default` says of it.

    Attributes:
      image: its file.
      caption: of it.
      log_prob: of the caption.
      status: of contract.Status.
    """

    image: bytes
    caption: str
    log_prob: float
    status: int

    @property
    def said(self) -> str:
        """Caption, log_prob and status, for a message."""
        return f"captioned {self.caption!r} (log_prob {self.log_prob:g}, status {self.status})"

    def says_the_same_as(self, other: "Sample") -> bool:
        """True up to the last bits of log_prob."""
        return (self.caption, self.status) == (other.caption, other.status) and bool(
            np.isclose(self.log_prob, other.log_prob, _LOG_PROB_TOLERANCE, _LOG_PROB_TOLERANCE)
        )


_NO_IMAGE = Sample(b"", "", -math.inf, Status.NOT_AN_IMAGE)


def verify(path: Path, trained: Trained, encoder: Encoder) -> Verified:
    """Check an unpublished version.

    Args:
      path: the SavedModel.
      trained: what it was made from.
      encoder: likewise.

    Raises:
      CheckFailed: naming the check.
    """
    _check_ops(path)
    for asset in (VOCABULARY_FILE, MANIFEST_FILE):
        if not (path / "assets" / asset).is_file():
            raise CheckFailed(f"export: asset {asset} is missing")
    named = Manifest.load(path / "assets").encoder["digest"]
    if named != encoder.digest:
        raise CheckFailed(
            f"export: the manifest names encoder {named[:8]}, the graph holds {encoder.digest[:8]}"
        )
    if not (path / WARMUP_FILE).is_file():
        raise CheckFailed(f"export: {WARMUP_FILE} is missing")
    loaded = tf.saved_model.load(str(path))
    signatures = dict(loaded.signatures)
    _check_signatures(signatures)
    images = [sample_image(), *sample_images()]
    serve = signatures[contract.SERVING_DEFAULT]
    samples = _check_captions(serve, images, trained, encoder)
    _check_batches(serve, samples)
    return _check_session(path, samples)


def sample_images() -> list[bytes]:
    """Seeded pictures, JPEG and PNG in turn: smooth colours with some noise."""
    generator = np.random.default_rng(0)
    pictures = []
    for index, (height, width) in enumerate(_SAMPLE_SIZES):
        coarse = generator.uniform(0, 255, (1, 4, 4, 3)).astype(np.float32)
        smooth = tf.image.resize(coarse, [height, width])[0]
        noisy = smooth + generator.normal(0, 10, (height, width, 3))
        pixels = tf.cast(tf.clip_by_value(noisy, 0, 255), tf.uint8)
        encode = tf.io.encode_png if index % 2 else tf.io.encode_jpeg
        pictures.append(bytes(encode(pixels).numpy()))
    return pictures


def _check_ops(path: Path) -> None:
    graph = saved_model_pb2.SavedModel()
    graph.ParseFromString((path / "saved_model.pb").read_bytes())
    for meta in graph.meta_graphs:
        library = meta.graph_def.library
        nodes = [*meta.graph_def.node, *(n for f in library.function for n in f.node_def)]
        found = sorted({node.op for node in nodes if node.op in _FORBIDDEN})
        if found:
            raise CheckFailed(f"export: ops that need Python: {', '.join(found)}")


def _check_signatures(signatures: dict[str, tf.types.experimental.ConcreteFunction]) -> None:
    for name, outputs in contract.OUTPUTS.items():
        if name not in signatures:
            raise CheckFailed(f"export: signature {name} is missing")
        declared = signatures[name].structured_outputs
        for output, wanted in outputs.items():
            found = declared.get(output)
            if found is None:
                raise CheckFailed(f"export: {name} has no output {output}")
            if found.dtype.name != wanted.dtype or found.shape.rank != len(wanted.dims):
                raise CheckFailed(
                    f"export: {name}.{output} is {found.dtype.name} {found.shape}, expected "
                    f"{wanted.dtype} [{', '.join(wanted.dims)}]"
                )


def _check_captions(
    serve: tf.types.experimental.ConcreteFunction,
    images: Sequence[bytes],
    trained: Trained,
    encoder: Encoder,
) -> list[Sample]:
    """The reloaded graph says what the pieces say that trained and evaluated the model."""
    settings = encoder.settings
    prepared = [prepare(image, settings.image_size, settings.aspect) for image in images]
    pixels, extents = (tf.stack(parts) for parts in zip(*prepared, strict=True))
    grid = grids_by(encoder)({"image": pixels, "extent": extents})
    expected = search_captions(trained.captioner, trained.vocabulary, trained.config.search, grid)
    answer = serve(**{contract.IMAGE_BYTES: tf.constant(images)})
    for row, text in enumerate(answer[contract.CAPTION].numpy()):
        caption = trained.vocabulary.decode(expected.tokens[row, 0].numpy())
        if text.decode() != caption:
            raise CheckFailed(
                f"export: sample {row} is captioned {text.decode()!r} after reloading, "
                f"{caption!r} in memory"
            )
    got, wanted = answer[contract.LOG_PROB].numpy(), expected.log_prob[:, 0].numpy()
    if not np.allclose(got, wanted, rtol=_LOG_PROB_TOLERANCE, atol=_LOG_PROB_TOLERANCE):
        raise CheckFailed(
            f"export: log_prob is {got.tolist()} after reloading, {wanted.tolist()} in memory"
        )
    return _samples(images, answer)


def _samples(images: Sequence[bytes], answer: dict[str, tf.Tensor]) -> list[Sample]:
    names = (contract.CAPTION, contract.LOG_PROB, contract.STATUS)
    captions, log_probs, statuses = (answer[name].numpy().tolist() for name in names)
    rows = zip(images, captions, log_probs, statuses, strict=True)
    return [Sample(image, text.decode(), *numbers) for image, text, *numbers in rows]


def _check_batches(
    serve: tf.types.experimental.ConcreteFunction, samples: Sequence[Sample]
) -> None:
    """What is said of an image depends neither on its batch's size nor on what else is in it."""
    # What cannot be read is one of them.
    known = [samples[0], _NO_IMAGE, *samples[1:]]
    generator = np.random.default_rng(0)
    for size in _CHECKED_SIZES:
        rows = generator.permutation(np.arange(size) % len(known))
        images = [known[row].image for row in rows]
        answer = serve(**{contract.IMAGE_BYTES: tf.constant(images)})
        for row, got in zip(rows, _samples(images, answer), strict=True):
            if not got.says_the_same_as(known[row]):
                raise CheckFailed(
                    f"export: sample {row} is {got.said} in a batch of {size}, "
                    f"{known[row].said} among the samples"
                )


def _check_session(path: Path, samples: Sequence[Sample]) -> Verified:
    """TensorFlow's loader, without our code, takes it, its warm-up and what is no image."""
    known = [*samples, _NO_IMAGE]
    asked = {
        "path": str(path),
        "warmup": str(path / WARMUP_FILE),
        "signature": contract.SERVING_DEFAULT,
        "input": contract.IMAGE_BYTES,
        "caption": contract.CAPTION,
        "status": contract.STATUS,
        "images": [base64.b64encode(sample.image).decode() for sample in known],
    }
    # Isolated: neither this folder nor the environment adds anything to import.
    command = [sys.executable, "-I", str(Path(session_check.__file__))]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SESSION_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(
            f"export: a session did not load it and answer within {_SESSION_TIMEOUT_S} s"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"export: a session cannot load it or answer ({last})")
    found = json.loads(done.stdout.splitlines()[-1])
    said = list(zip(found["captions"], found["statuses"], strict=True))
    expected = [(sample.caption, sample.status) for sample in known]
    if said != expected:
        raise CheckFailed(f"export: a session says of the samples {said}, expected {expected}")
    if found["requests"] != len(BATCH_SIZES):
        raise CheckFailed(
            f"export: {found['requests']} warm-up requests, expected {len(BATCH_SIZES)}"
        )
    return Verified(found["load_s"], found["peak_mib"])
