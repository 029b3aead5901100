"""Preprocessing from files to records ÷ the fastest bare encoder that is installed.

Both sides run the same encoder: the bare side on images already decoded, as many calls at
once as it does best with. Beside the ratio stands how long the encoder waited for images.
"""

import importlib.util
import itertools
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.photographs import decoded, lay_out
from benchmarks.ratio import compare, rate, report
from model.encoder import Encoder, EncoderSettings
from model.runtimes import OPENVINO, TENSORFLOW
from pipelines.records_job import PreprocessSettings, preprocess
from pipelines.source_flags import Source

# Six shards: the start of a job takes a second or two, which a job of hours does not feel.
COUNT = 6_144
TARGET = 0.92


class WatchedEncoder:
    """An encoder that notes when it works."""

    def __init__(self, runtime: str) -> None:
        self._encoder = Encoder(EncoderSettings("random:0", runtime=runtime))
        self.digest, self.grid_shape = self._encoder.digest, self._encoder.grid_shape
        self.batch_size, self.concurrency = self._encoder.batch_size, self._encoder.concurrency
        self.calls: list[tuple[float, float]] = []
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray, extents: np.ndarray | None = None) -> tf.Tensor:
        """As Encoder's."""
        started = time.perf_counter()
        grids = self._encoder(images, extents)
        with self._lock:
            self.calls.append((started, time.perf_counter()))
        return grids

    def idle_share(self) -> float:
        """Part of the time between first and last call in which a place for a call was empty."""
        first = min(started for started, _ in self.calls)
        last = max(ended for _, ended in self.calls)
        busy = sum(ended - started for started, ended in self.calls)
        return 1 - busy / (self.concurrency * (last - first))


@cache
def load(runtime: str) -> WatchedEncoder:
    """The encoder, built once: a job of hours does not pay for it in its rate."""
    return WatchedEncoder(runtime)


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        photographs = lay_out(Path(scratch) / "photographs", COUNT)
        images = decoded(photographs, EncoderSettings().image_size)
        runtime = _fastest(images)
        source = Source("train", str(photographs.annotations), str(photographs.images))
        number = itertools.count()
        idle: list[float] = []

        def pipeline() -> float:
            encoder = load(runtime)
            encoder.calls.clear()
            output = str(Path(scratch) / f"records-{next(number)}")
            settings = PreprocessSettings(
                (source,), output, encoder=EncoderSettings("random:0", runtime=runtime)
            )
            images_per_second = rate(
                lambda: preprocess(settings, [], partial(load, runtime)), COUNT
            )
            idle.append(encoder.idle_share())
            return images_per_second

        value, sides = compare(pipeline, bare(images, runtime))
    report(
        "preprocess_to_fastest_bare_encoder",
        value,
        f">={TARGET}",
        f"images/s of preprocess / of {runtime}'s bare ResNet50, {COUNT} images: {sides}; "
        f"encoder idle {', '.join(f'{share:.1%}' for share in idle)}",
    )


def bare(images: np.ndarray, runtime: str) -> Callable[[], float]:
    """Images a second of an encoder over decoded images [N, S, S, 3]."""
    encoder = load(runtime)
    batches = [
        images[start : start + encoder.batch_size]
        for start in range(0, len(images), encoder.batch_size)
    ]

    def work() -> None:
        with ThreadPoolExecutor(encoder.concurrency) as pool:
            list(pool.map(lambda batch: np.asarray(encoder(batch)), batches))

    # The first calls trace and compile.
    np.asarray(encoder(batches[0]))
    return lambda: rate(work, len(images))


def _fastest(images: np.ndarray) -> str:
    installed = [TENSORFLOW]
    if importlib.util.find_spec(OPENVINO) is not None:
        installed.append(OPENVINO)
    sample = images[: COUNT // 4]
    rates = {runtime: bare(sample, runtime)() for runtime in installed}
    print("bare encoders, images/s:", ", ".join(f"{n} {r:.1f}" for n, r in rates.items()))
    return max(rates, key=lambda name: rates[name])
