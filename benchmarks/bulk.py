"""Bulk captioning of a directory, beam of three, ÷ the bare exported graph at batch 32.

Once with the model in the process, once through the local server on the same machine. The model
has the default sizes, a vocabulary of 10,000 words and untrained weights, so that every caption
runs to the longest that is allowed: 11 words, the mean of coco80's captions. Both sides decode,
encode and search; what bulk does besides is reading, validating and accounting, which shall cost
nothing while the graph works.
"""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from benchmarks.bare import BATCH
from benchmarks.photographs import Photographs, lay_out
from benchmarks.ratio import compare, rate, report
from benchmarks.served import serve
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
from serving import contract
from serving.published import find_version

COUNT = 12 * BATCH
IN_PROCESS_TARGET, SERVED_TARGET = 0.9, 0.8
WORDS = 10_000
# The mean of coco80's 400 captions is 10.6 words.
MEAN_LENGTH = 11
SETTINGS = EncoderSettings("random:0")


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photographs = lay_out(root / "photographs", COUNT)
        model_dir = export_untrained(root, MEAN_LENGTH)
        bare = _bare_graph(model_dir, photographs)
        in_process = Target(str(model_dir), None, "captioner")
        _report("bulk_in_process", IN_PROCESS_TARGET, photographs, in_process, bare)
        with serve(model_dir, root / "serve.log") as served:
            through = Target(None, served.address, served.name)
            _report("bulk_through_server", SERVED_TARGET, photographs, through, bare)


def _report(
    name: str, target: float, photographs: Photographs, where: Target, bare: Callable[[], float]
) -> None:
    clients = Clients(where)
    with clients.open() as client:
        client.caption([path.read_bytes() for path in _first_batch(photographs)])
        number = itertools.count()

        def bulk() -> float:
            output = f"{photographs.images.parent}/{name}-{next(number)}"
            config = BulkConfig(output, batch_size=BATCH)
            columns = Columns(DEFAULT_URL_COLUMN, None)
            return rate(
                lambda: caption_all(str(photographs.images), columns, clients, config), COUNT
            )

        value, sides = compare(bulk, bare)
    report(
        f"{name}_to_bare_exported_graph",
        value,
        f">={target}",
        f"images/s of bulk, beam width {Config().search.beam_width}, captions of {MEAN_LENGTH} "
        f"words / of the bare graph at batch {BATCH}, {COUNT} images: {sides}",
    )


def _bare_graph(model_dir: Path, photographs: Photographs) -> Callable[[], float]:
    """Images a second of the exported graph, one batch after the other."""
    loaded = tf.saved_model.load(str(find_version(model_dir).path))
    images = [path.read_bytes() for path in sorted(photographs.images.iterdir())]

    def caption(batch: Sequence[bytes]) -> None:
        graph = loaded.signatures[contract.SERVING_DEFAULT]
        graph(**{contract.IMAGE_BYTES: tf.constant(batch)})[contract.CAPTION].numpy()

    def work() -> None:
        for start in range(0, len(images), BATCH):
            caption(images[start : start + BATCH])

    # The first call takes longer than all others.
    caption(images[:BATCH])
    return lambda: rate(work, len(images))


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
