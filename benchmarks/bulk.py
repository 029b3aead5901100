"""Bulk captioning in-process, beam of three, ÷ bare ResNet50 on images already decoded.

The model has the default sizes, a vocabulary of 10,000 words and untrained weights, so that
every caption runs to the longest that is allowed: once to 11 words, the mean of coco80's
captions, which has the target, and once to the default limit of 20, the most that a search
can cost, which falls short of it.
"""

import itertools
import tempfile
from pathlib import Path

import keras

from benchmarks.bare import BATCH, bare_forward
from benchmarks.photographs import Photographs, decoded, lay_out
from benchmarks.ratio import compare, rate, report
from export import saved_model
from export.module import CaptionModule
from model.captioner import Captioner
from model.checkpoints import Trained
from model.config import Config
from model.encoder import Encoder, EncoderSettings
from model.preprocessing import fingerprint
from model.records import MANIFEST_FILE, VOCABULARY_FILE, Manifest
from model.resnet50 import NAME
from model.vocabulary import Vocabulary
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.clients import Clients, Target
from pipelines.columns import DEFAULT_URL_COLUMN, Columns

COUNT = 12 * BATCH
TARGET = 0.80
WORDS = 10_000
# The mean of coco80's 400 captions is 10.6 words.
MEAN_LENGTH, MOST = 11, Config().search.max_length
SETTINGS = EncoderSettings("random:0")


def main() -> None:
    """Measure and report."""
    for length, target in ((MEAN_LENGTH, f">={TARGET}"), (MOST, "none")):
        with tempfile.TemporaryDirectory() as scratch:
            value, sides = _measure(Path(scratch), length)
        report(
            f"bulk_in_process_{length}_words_to_bare_resnet50",
            value,
            target,
            f"images/s of bulk, beam width {Config().search.beam_width}, captions of {length} "
            f"words / of bare ResNet50 at batch {BATCH}, {COUNT} images: {sides}",
        )


def _measure(root: Path, length: int) -> tuple[float, str]:
    photographs = lay_out(root / "photographs", COUNT)
    images = decoded(photographs, SETTINGS.image_size)
    clients = Clients(Target(str(export_untrained(root, length)), None, "captioner"))
    with clients.open() as client:
        client.caption([path.read_bytes() for path in _first_batch(photographs)])
        number = itertools.count()

        def bulk() -> float:
            config = BulkConfig(str(root / f"captions-{next(number)}"), batch_size=BATCH)
            columns = Columns(DEFAULT_URL_COLUMN, None)
            where = str(photographs.images)
            return rate(lambda: caption_all(where, columns, clients, config), COUNT)

        return compare(bulk, bare_forward(images))


def export_untrained(root: Path, length: int) -> Path:
    """Publish an untrained model of the default sizes and this length; MODELS/NAME."""
    trained, encoder = make_untrained(root / "model", length)
    name_dir = root / "models" / "captioner"
    module = CaptionModule(trained, encoder)
    saved_model.publish(module, root / "model", name_dir, lambda _: None)
    return name_dir


def make_untrained(model_dir: Path, length: int) -> tuple[Trained, Encoder]:
    """An untrained model of the default sizes and this length; MODEL_DIR with what export reads."""
    encoder = Encoder(SETTINGS)
    vocabulary = Vocabulary.build({f"word{index}": 1 for index in range(WORDS)}, 1)
    manifest = Manifest(
        preprocessing=SETTINGS.choices,
        fingerprint=fingerprint(SETTINGS.choices),
        grid_shape=encoder.grid_shape,
        encoder={"name": NAME, "weights": SETTINGS.weights, "digest": encoder.digest},
        vocabulary={"digest": vocabulary.digest, "size": len(vocabulary), "min_word_count": 1},
        max_words=Config().search.max_length,
        splits={},
        ledger={},
        caption_ledger={},
    )
    model_dir.mkdir()
    (model_dir / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    vocabulary.save(model_dir / VOCABULARY_FILE)
    keras.utils.set_random_seed(0)
    config = Config().updated([("search.max_length", length)])
    captioner = Captioner(config.decoder, len(vocabulary), manifest.grid_shape)
    return Trained(captioner, vocabulary, config, manifest, step=0), encoder


def _first_batch(photographs: Photographs) -> list[Path]:
    return sorted(photographs.images.iterdir())[:BATCH]
