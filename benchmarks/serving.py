"""The local server ÷ the bare SavedModel that it serves, side by side.

One client that asks for one image at a time pays for gRPC and the wait for a batch; many that do
so together must get what a full batch gets.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.bare import BATCH
from benchmarks.bulk import MEAN_LENGTH, export_untrained
from benchmarks.photographs import lay_out
from benchmarks.ratio import compare, rate, report
from benchmarks.served import Served, predicting, serve
from serving import contract
from serving.published import find_version

CLIENTS, CALLS = 32, 6
SINGLE_CALLS = 20
_TIMEOUT_S = 300.0
_QUEUE, _COMPUTE = "captionbeam_queue_seconds_sum", "captionbeam_compute_seconds_sum"


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photographs = lay_out(root / "photographs", CLIENTS)
        images = [path.read_bytes() for path in sorted(photographs.images.iterdir())]
        model_dir = export_untrained(root, MEAN_LENGTH)
        loaded = tf.saved_model.load(str(find_version(model_dir).path))
        bare = loaded.signatures[contract.SERVING_DEFAULT]
        with serve(model_dir, root / "serve.log") as served, predicting(served) as stub:
            _report_latency(served, stub, bare, images)
            _report_throughput(served, stub, bare, images)


def _report_latency(served: Served, stub: Any, bare: Any, images: Sequence[bytes]) -> None:
    requests = [served.request(image) for image in images[:SINGLE_CALLS]]
    tensors = [tf.constant([image]) for image in images[:SINGLE_CALLS]]

    def through_grpc() -> float:
        return _p50([partial(stub.Predict, request, timeout=_TIMEOUT_S) for request in requests])

    def in_process() -> float:
        return _p50([partial(_caption, bare, tensor) for tensor in tensors])

    through_grpc(), in_process()
    ratio, sides = compare(through_grpc, in_process)
    report(
        "latency of one client through gRPC / bare SavedModel",
        ratio,
        "<=1.15",
        f"p50 in ms of {SINGLE_CALLS} calls of one image: {sides}",
    )


def _report_throughput(served: Served, stub: Any, bare: Any, images: Sequence[bytes]) -> None:
    batch = tf.constant(images[:BATCH])
    latencies_s: list[float] = []

    def ask(image: bytes) -> None:
        request = served.request(image)
        for _ in range(CALLS):
            started_s = time.perf_counter()
            stub.Predict(request, timeout=_TIMEOUT_S)
            latencies_s.append(time.perf_counter() - started_s)

    def together() -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(ask, images))

    def alone() -> None:
        for _ in range(CALLS):
            _caption(bare, batch)

    before = [served.metric(name) for name in (_QUEUE, _COMPUTE)]
    ratio, sides = compare(
        lambda: rate(together, CLIENTS * CALLS), lambda: rate(alone, BATCH * CALLS)
    )
    queue_s, compute_s = (
        served.metric(name) - value for name, value in zip((_QUEUE, _COMPUTE), before, strict=True)
    )
    report(
        f"{CLIENTS} clients of one image each / bare SavedModel in batches of {BATCH}",
        ratio,
        ">=0.9",
        f"images/s: {sides}; p99 {np.percentile(latencies_s, 99):.2f} s, "
        f"{100 * queue_s / (queue_s + compute_s):.0f} % of it in the queue",
    )


def _caption(bare: Any, images: tf.Tensor) -> np.ndarray:
    captions: np.ndarray = bare(**{contract.IMAGE_BYTES: images})[contract.CAPTION].numpy()
    return captions


def _p50(calls: Sequence[Callable[[], object]]) -> float:
    """Median in milliseconds."""
    seconds = []
    for call in calls:
        started_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started_s)
    return 1000 * statistics.median(seconds)
