"""What an exported directory must pass, before it is published and ever after.

`verify` compares it with what it was made from. `recheck` knows a published directory alone, and
the record that was left in it then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from export import record
from export.graph_checks import (
    ask,
    check_batches,
    check_captions,
    check_signatures,
    check_words,
)
from export.operations import check_operations
from export.samples import Sample, sample_images, samples_of
from export.session import Session, check_session
from export.versions import ASSETS, check_published
from model.checkpoints import Trained, load_vocabulary
from model.compatibility import check_fingerprint
from model.encoder import Encoder
from model.errors import CheckFailed, InvalidInput
from model.records import MANIFEST_FILE, VOCABULARY_FILE, Manifest
from serving import contract
from serving.layout import SAVED_MODEL_FILE, WARMUP_FILE


@dataclass(frozen=True)
class Verified:
    """What was seen of a version that passed.

    Attributes:
      operations: kinds of TensorFlow operations that it is made of.
      session: what loading it took a process that has none of our code.
      samples: what it says of export/samples.
    """

    operations: int
    session: Session
    samples: tuple[Sample, ...]

    def __str__(self) -> str:
        """One line for a person."""
        session = self.session
        return (
            f"{self.operations} kinds of operations, loads in {session.load_s:.1f} s, "
            f"{session.peak_mib:,.0f} MiB at peak, largest answer "
            f"{session.answer_bytes / 2**20:.1f} MiB, without captionbeam's code"
        )


@dataclass(frozen=True)
class Source:
    """What a version was made from.

    Attributes:
      trained: captioner, vocabulary and search settings.
      encoder: of the model.
    """

    trained: Trained
    encoder: Encoder


def verify(path: Path, trained: Trained, encoder: Encoder) -> Verified:
    """Check an unpublished version.

    Args:
      path: the SavedModel.
      trained: what it was made from.
      encoder: likewise.

    Raises:
      CheckFailed: naming the check.
    """
    return _check(path, encoder.digest, Source(trained, encoder))


def verify_and_record(path: Path, trained: Trained, encoder: Encoder) -> Verified:
    """`verify`, and leave in the version what `recheck` needs."""
    verified = verify(path, trained, encoder)
    record.write(path, verified.samples, encoder.digest)
    return verified


def recheck(path: Path, source: Source | None = None) -> Verified:
    """Check MODELS/NAME/VERSION again, wherever it was copied to.

    Args:
      path: the version.
      source: what it was made from, if it is to be compared with that, too.

    Raises:
      InvalidInput: no published version.
      CheckFailed: naming the check, or the files that have changed.
    """
    check_published(path)
    published = record.read(path)
    published.check_files(path)
    if source is not None and source.encoder.digest != published.encoder:
        raise CheckFailed(
            f"{path}: holds encoder {published.encoder[:8]}, the model has "
            f"{source.encoder.digest[:8]}; name the --model_dir that it was exported from"
        )
    verified = _check(path, published.encoder, source)
    published.check_captions(verified.samples)
    return verified


def _check(path: Path, encoder_digest: str, source: Source | None) -> Verified:
    operations = check_operations(path / SAVED_MODEL_FILE)
    _check_assets(path, encoder_digest)
    with _loading(path):
        signatures = dict(tf.saved_model.load(str(path)).signatures)
        check_signatures(signatures)
        serve, images = signatures[contract.SERVING_DEFAULT], sample_images()
        samples = samples_of(images, ask(serve, images))
        if source is not None:
            check_captions(samples, source.trained, source.encoder)
        check_batches(serve, samples)
        check_words(signatures[contract.EXPLAIN], samples, load_vocabulary(path / ASSETS))
    return Verified(operations, check_session(path, samples), tuple(samples))


def _check_assets(path: Path, encoder_digest: str) -> None:
    for asset in (VOCABULARY_FILE, MANIFEST_FILE):
        if not (path / ASSETS / asset).is_file():
            raise CheckFailed(f"export: asset {asset} is missing")
    try:
        manifest = Manifest.load(path / ASSETS)
        check_fingerprint(manifest, str(path / ASSETS))
        load_vocabulary(path / ASSETS, manifest)
    except InvalidInput as error:
        # Here they are not what somebody gave, but what was made.
        raise CheckFailed(f"export: {error}") from error
    named = manifest.encoder["digest"]
    if named != encoder_digest:
        raise CheckFailed(
            f"export: the manifest names encoder {named[:8]}, the graph holds {encoder_digest[:8]}"
        )
    if not (path / WARMUP_FILE).is_file():
        raise CheckFailed(f"export: {WARMUP_FILE} is missing")


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, tf.errors.OpError) as error:
        first = str(error).partition("\n")[0][:200]
        raise CheckFailed(f"{path}: does not load or answer ({first}); export again") from error
