"""Preprocessing from files to records ÷ bare ResNet50 on images already decoded."""

import itertools
import tempfile
from pathlib import Path

from benchmarks.bare import BATCH, bare_forward
from benchmarks.photographs import decoded, lay_out
from benchmarks.ratio import compare, rate, report
from model.encoder import Encoder, EncoderSettings
from pipelines.records_job import PreprocessSettings, preprocess
from pipelines.source_flags import Source

COUNT = 20 * BATCH
TARGET = 0.85
SETTINGS = EncoderSettings("random:0")
_LOADED: dict[str, Encoder] = {}


def load_encoder() -> Encoder:
    """The encoder, built once: a job of hours does not pay for it in its rate."""
    if not _LOADED:
        _LOADED["encoder"] = Encoder(SETTINGS)
    return _LOADED["encoder"]


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        photographs = lay_out(Path(scratch) / "photographs", COUNT)
        images = decoded(photographs, SETTINGS.image_size)
        load_encoder()(images[:BATCH])
        source = Source("train", str(photographs.annotations), str(photographs.images))
        number = itertools.count()

        def pipeline() -> float:
            output = str(Path(scratch) / f"records-{next(number)}")
            settings = PreprocessSettings((source,), output, encoder=SETTINGS)
            return rate(lambda: preprocess(settings, [], load_encoder), COUNT)

        value, sides = compare(pipeline, bare_forward(images))
    report(
        "preprocess_to_bare_resnet50",
        value,
        f">={TARGET}",
        f"images/s of preprocess / of bare ResNet50 at batch {BATCH}, {COUNT} images: {sides}",
    )
